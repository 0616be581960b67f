"""What gradient statistics cost on a GPU: GPT-2 with 124 million parameters, bfloat16.

Single steps take turns in one process: plain, plain again, observed at every step, and blocks at
the default cadence, uncompiled and, with ``--compiled``, compiled. Observed and unobserved steps
run under ``torch.cuda.set_sync_debug_mode("error")``, so that any wait for the device ends the
benchmark. ``bench_runs_gpu`` measures whole training steps.

Run ``python -m tests.benchmarks.bench_statistics_gpu`` from the repository's root; it needs
transformers and a CUDA device, and takes under a minute on an H100. ``--small`` does the same with
a tiny model, on a CPU too.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import masking_utils

from adaptmix.probe import GradientProbe
from tests.benchmarks.workloads import DOMAINS, gpt2, token_losses

CADENCE, BLOCK = 10, 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def no_waiting() -> Iterator[None]:
    if DEVICE == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def now() -> float:
    """Return the time once the device is idle, in milliseconds."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return 1e3 * time.perf_counter()


def let_transformers_wait() -> None:
    """Except what transformers itself waits for: whether positions tell that rows are packed."""
    look = masking_utils.find_packed_sequence_indices

    def looked(*args: Any, **kwargs: Any) -> Any:
        if not torch.cuda.is_available():
            return look(*args, **kwargs)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return look(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    masking_utils.find_packed_sequence_indices = looked


class Arm:
    """A model in training, observed at some steps or never.

    Args:
        every: steps between observations; 0 for never.
        compiled: whether the model is compiled.
        args: rows of a batch, tokens of a row, and whether the model is small.
    """

    def __init__(self, *, every: int, compiled: bool, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        rows, length = args.rows, args.length
        layers, width, heads, vocabulary = (2, 64, 4, 256) if args.small else (12, 768, 12, 50257)
        model: nn.Module = gpt2(layers, width, heads, vocabulary, length).to(DEVICE)
        self._model = torch.compile(model) if compiled else model
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=DEVICE == "cuda")
        self._every, self._number = every, 0
        self._probe: GradientProbe | None = None
        if every:
            self._probe = GradientProbe(self._model, DOMAINS)  # type: ignore[arg-type]
            self._probe.attach()
        tokens = torch.randint(vocabulary, (rows, length + 1), device=DEVICE)
        self._inputs, self._targets = tokens[:, :-1], tokens[:, 1:].contiguous()
        self._domains = torch.arange(rows, device=DEVICE) % DOMAINS
        self._factors = torch.full((rows,), 1.0 / rows, device=DEVICE)
        self.gram: Tensor | None = None

    def step(self) -> None:
        probe = self._probe
        if probe is not None:
            probe.arm(self._number % self._every == 0, step=self._number)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = token_losses(self._model, self._inputs, self._targets).mean()  # type: ignore[arg-type]
        if probe is not None:
            probe.expect(self._domains, self._factors, loss)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        sums = None if probe is None else probe.collect()
        if sums is not None:
            self.gram = sums.gram()
        self._number += 1

    def milliseconds(self, steps: int) -> float:
        start = now()
        with no_waiting():
            for _ in range(steps):
                self.step()
        return (now() - start) / steps

    def peak(self) -> float:
        if DEVICE == "cpu":
            return float("nan")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(CADENCE):
            self.step()
        return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of gradient statistics on a GPU.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--compiled", action="store_true", help="and compiled, which takes longer")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try it out")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.small:
        parser.error("needs a CUDA device, but with --small")
    warnings.simplefilter("ignore")
    let_transformers_wait()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, bf16 autocast, ", end="")
    print(f"{args.rows} x {args.length} tokens, {args.rounds} rounds of {BLOCK} steps")
    print("| model | loop | ms per step | step / plain step (quartiles) | peak memory |")
    print("|---|---|---|---|---|")
    for compiled in (False, True) if args.compiled else (False,):
        cadences = {
            "plain": 0,
            "plain again": 0,
            f"every {CADENCE} steps": CADENCE,
            "every step": 1,
        }
        arms = {
            name: Arm(every=every, compiled=compiled, args=args) for name, every in cadences.items()
        }
        for arm in arms.values():
            for _ in range(2 * CADENCE):
                arm.step()
        memory = {name: arm.peak() for name, arm in arms.items()}
        taken: dict[str, list[float]] = {name: [] for name in arms}
        order = random.Random(0)
        for _ in range(args.rounds):
            for name in order.sample(list(arms), len(arms)):
                taken[name].append(arms[name].milliseconds(BLOCK))
        for name, milliseconds in taken.items():
            ratios = np.array(milliseconds) / np.array(taken["plain"])
            low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            cells = (
                "compiled" if compiled else "eager",
                name,
                f"{np.median(milliseconds):.1f}",
                f"{median:.3f} ({low:.3f} to {high:.3f})",
                f"{memory[name] / memory['plain']:.2f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)
        del arms
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
