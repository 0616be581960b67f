"""What AdaptMix costs whole training steps on a GPU: GPT-2 with 124 million parameters, bfloat16.

First a plain loop: blocks of ten steps of a loop without AdaptMix, of the same again (the noise
floor), with the defaults, and with gradients measured in every step take turns in random order in
one process. Then whole runs of the Hugging Face Trainer, first proofs included. Each block, or run,
is divided by the plain one of its round. Times are of the clock, with the device waited for at both
ends of a block.

Run ``PYTHONPATH=integrations python -m tests.benchmarks.bench_runs_gpu`` from the repository's
root; it needs transformers, datasets and a CUDA device, and takes about a minute on an H100.
``--small`` does the same with a tiny model, on a CPU too.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from adaptmix import Controller, Mixture
from adaptmix_transformers import AdaptMixCallback

BLOCK, DOMAINS, ROWS = 10, 4, 2000
ARMS: dict[str, int | None] = {
    "plain": None,
    "plain again": None,
    "defaults": 10,
    "measured every step": 1,
}


def model(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    size: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 4} if args.small else {}
    config = GPT2Config(vocab_size=args.vocabulary, n_positions=args.length, **size)
    return GPT2LMHeadModel(config)


def tokens(args: argparse.Namespace) -> torch.Tensor:
    """Return (rows, T) random tokens of all domains."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(args.vocabulary, (DOMAINS * ROWS, args.length), generator=generator)


def wait(args: argparse.Namespace) -> float:
    """Return the time once the device is idle."""
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def loop(args: argparse.Namespace, rows: torch.Tensor, every: int | None) -> Callable[[], None]:
    """Return one step of a plain loop."""
    net = model(args).to(args.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=args.device == "cuda")
    parts = {str(i): TensorDataset(part) for i, part in enumerate(rows.chunk(DOMAINS))}
    mixture = Mixture(parts)
    controller = Controller(mixture, net, measure_every=every) if every else None
    if controller is None:
        loader: Any = torch.utils.data.DataLoader(mixture, batch_size=args.rows, shuffle=True)
    else:
        loader = controller.loader(args.rows, steps=10**6)
    batches = iter(loader)

    def step() -> None:
        ids = next(batches)[0].to(args.device, non_blocking=True)
        with torch.autocast(args.device, torch.bfloat16):
            logits = net(ids, use_cache=False).logits[:, :-1]
            reduction = "mean" if controller is None else "none"
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction=reduction)
            if controller is not None:
                loss = controller.loss(loss.view(len(ids), -1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if controller is not None:
            controller.step()

    return step


def loops(args: argparse.Namespace, rows: torch.Tensor) -> dict[str, list[float]]:
    """Return the seconds of each block of each arm."""
    steps = {name: loop(args, rows, every) for name, every in ARMS.items()}
    for step in steps.values():
        for _ in range(2 * BLOCK):
            step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for _ in range(args.rounds):
        for name in order.sample(list(steps), len(steps)):
            start = wait(args)
            for _ in range(BLOCK):
                steps[name]()
            taken[name].append(wait(args) - start)
    return taken


def run(args: argparse.Namespace, data: Dataset, every: int | None) -> float:
    """Return the seconds that one run of the Trainer takes."""
    callbacks: list[Any] = [AdaptMixCallback("source", measure_every=every)] if every else []
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=args.rows,
            max_steps=args.steps,
            logging_steps=args.steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            bf16=True,
            use_cpu=args.device == "cpu",
        )
        trainer = Trainer(model(args), arguments, train_dataset=data, callbacks=callbacks)
        start = wait(args)
        trainer.train()
        return wait(args) - start


def runs(args: argparse.Namespace, rows: torch.Tensor) -> dict[str, list[float]]:
    """Return the seconds of each run of each arm."""
    source = np.repeat([f"domain {i}" for i in range(DOMAINS)], ROWS)
    data = Dataset.from_dict({"input_ids": rows.numpy(), "labels": rows.numpy(), "source": source})
    run(args, data, None)  # what only the first run pays
    taken: dict[str, list[float]] = {name: [] for name in ARMS}
    order = random.Random(0)
    for _ in range(args.runs):
        for name in order.sample(list(ARMS), len(ARMS)):
            taken[name].append(run(args, data, ARMS[name]))
    return taken


def table(what: str, taken: dict[str, list[float]], steps: int) -> None:
    """Print the ratios of an arm's times to the plain ones of the same round."""
    for name, seconds in taken.items():
        ratios = np.array(seconds) / np.array(taken["plain"])
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        each = 1e3 * np.median(seconds) / steps
        print(f"| {what} | {name} | {each:.1f} | {median:.3f} ({low:.3f} to {high:.3f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=10, help="of blocks of the plain loop")
    parser.add_argument("--runs", type=int, default=3, help="of the Trainer")
    parser.add_argument("--steps", type=int, default=100, help="of a run of the Trainer")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try it out")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.vocabulary = 256 if args.small else 50257
    if args.device == "cpu" and not args.small:
        parser.error("needs a CUDA device, but with --small")
    warnings.simplefilter("ignore")
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, bf16 autocast, {args.rows} x {args.length} tokens, "
        f"{args.rounds} rounds of {BLOCK} steps; {args.runs} runs of {args.steps} steps"
    )
    print("| trainer | loop | ms per step | step / plain step (quartiles) |\n|---|---|---|---|")
    rows = tokens(args)
    table("a plain loop", loops(args, rows), BLOCK)
    table("Hugging Face", runs(args, rows), args.steps)


if __name__ == "__main__":
    main()
