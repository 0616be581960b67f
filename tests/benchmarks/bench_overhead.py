"""What AdaptMix costs per step, against the same loop without it, interleaved in one process.

Blocks of ten steps (one observation and one update each, at the defaults) of a plain loop, of the
same plain loop again (the noise floor), and of the loop with AdaptMix take turns in random order:
with the defaults, with gradients observed in every step, and with "joint" and noise terms. Each
block's processor time is divided by that of the plain block of the same round. Then it says what
the defaults add to a step in which nothing is due, and to each ten beside that.

Run ``PYTHONPATH=examples python -m tests.benchmarks.bench_overhead`` from the repository's root.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from quickstart import LENGTH, ByteLM
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from adaptmix import Controller, Mixture, noise

BLOCK = 10
ROWS, DOMAINS = 4000, 5


def parts() -> dict[str, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    return {
        str(i): TensorDataset(
            torch.randint(256, (ROWS, LENGTH), generator=generator),
            torch.randint(256, (ROWS, LENGTH), generator=generator),
        )
        for i in range(DOMAINS)
    }


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def plain(batch_size: int, dim: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = ByteLM(dim)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = endless(DataLoader(Mixture(parts()), batch_size=batch_size, shuffle=True))

    def step() -> None:
        inputs, labels = next(batches)
        loss = F.cross_entropy(model(inputs).transpose(1, 2), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def adapted(
    batch_size: int, dim: int, policy: str = "variance_aware", **options: Any
) -> Callable[[], None]:
    torch.manual_seed(0)
    model = ByteLM(dim)
    optimizer = torch.optim.AdamW(model.parameters())
    controller = Controller(Mixture(parts()), policy=policy, **options)
    controller.watch(model)
    batches = iter(controller.loader(batch_size, steps=10**6))

    def step() -> None:
        inputs, labels = next(batches)
        logits = model(inputs)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        terms = noise.softmax(logits, labels) if policy == "joint" else None
        controller.loss(losses, noise=terms).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dim", type=int, default=96, help="of the model; the demo's is 48")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = (args.batch_size, args.dim)
    arms = {
        "plain": plain(*size),
        "plain again": plain(*size),
        "defaults": adapted(*size),
        "observed every step": adapted(*size, measure_every=1),
        "joint": adapted(*size, "joint"),
    }
    for step, _ in itertools.product(arms.values(), range(BLOCK)):
        step()
    shuffled = random.Random(0)
    found: dict[str, list[list[float]]] = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name in shuffled.sample(list(arms), len(arms)):
            found[name].append([seconds(arms[name]) for _ in range(BLOCK)])
    times = {name: 1e3 * np.array(blocks) for name, blocks in found.items()}
    base = times["plain"].sum(1)
    setup = f"torch {torch.__version__}, CPU, 1 thread, batch {args.batch_size} x {LENGTH} bytes"
    print(
        f"{setup}, {args.dim} wide, {args.rounds} rounds; plain step "
        f"{np.median(base) / BLOCK:.1f} ms of processor time"
    )
    print("| loop | step / plain step | quartiles |\n|---|---|---|")
    for name, each in times.items():
        low, median, high = np.quantile(each.sum(1) / base, (0.25, 0.5, 0.75))
        print(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} |")
    # The probe's hooks come on in the last step but one, and off in the last.
    added = np.median(times["defaults"], axis=0) - np.median(times["plain"])
    every = float(np.median(added[1:-2]))
    rest = added.sum() - BLOCK * every
    print(f"The defaults add {every:.2f} ms to every step, and {rest:.1f} ms more to each {BLOCK}.")


def seconds(step: Callable[[], None]) -> float:
    """Return the processor time of a step."""
    start = time.process_time()
    step()
    return time.process_time() - start


if __name__ == "__main__":
    main()
