"""How fast rows are planned, beside other ways to mix, and what planning is of a loader's time.

Run ``python -m tests.benchmarks.bench_plan`` from the repository's root; it writes results/plan.md.
Peers that are not installed are left out: ``pip install datasets torchdata grain``.

Rates are of processor time in the calling process, for lists of row numbers, one list per batch.
Methods take turns, and the best round of each counts. Memory is what a process of its own has at
its peak beyond what its imports take.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, WeightedRandomSampler

from adaptmix._checks import FloatArray
from adaptmix.data import Layout, Loader, Mixture, Plan, PlanSampler

RESULTS = Path(__file__).parent / "results" / "plan.md"
# Domains, rows of each, rows of a batch.
CASES = [
    (2, 500_000, 32),
    (100, 10_000, 1024),
    (100, 10**8, 1024),
    (100, 10**10, 1024),
    (10_000, 100, 16_384),
    (10_000, 10**8, 16_384),
]
# torch.multinomial takes no more weights than this; each stream of datasets opens files.
_MOST_WEIGHTS, _MOST_STREAMS = 2**24, 500
# Rows of a measurement.
_ROWS = 2**18
_ROW_BYTES = 4096

Batches = Iterator[list[int]]


class Numbers(Dataset[int]):
    """So many rows, each its own number."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> int:
        if not 0 <= row < self.size:
            raise IndexError(row)
        return row


def mixing(domains: int) -> FloatArray:
    """(domains,) uneven shares, the same for every method."""
    drawn = np.random.default_rng(0).dirichlet(np.ones(domains))
    shares: FloatArray = (drawn + 1 / domains) / 2
    return shares


def planned(domains: int, size: int, batch: int) -> Batches:
    """Plan with AdaptMix: exact rows without replacement, shuffled in each epoch."""
    mixture = Mixture({str(i): Numbers(size) for i in range(domains)})
    plan = Plan(mixture, shares=mixing(domains), lag=10**6, seed=0)
    return iter(PlanSampler(plan, Layout(batch), steps=10**6))


def weighted(domains: int, size: int, batch: int) -> Batches:
    """Draw with WeightedRandomSampler: with replacement."""
    weights = np.repeat(mixing(domains) / size, size)
    sampler = WeightedRandomSampler(torch.from_numpy(weights), 2 * _ROWS)  # type: ignore[arg-type]
    return iter(BatchSampler(sampler, batch, drop_last=True))


def interleaved(domains: int, size: int, batch: int) -> Batches:
    """Mix with interleave_datasets, streams: each row once, in the stream's order."""
    from datasets import IterableDataset, interleave_datasets

    def rows(start: int) -> Iterator[dict[str, int]]:
        return ({"row": row} for row in range(start, start + size))

    streams = [
        IterableDataset.from_generator(rows, gen_kwargs={"start": i * size}) for i in range(domains)
    ]
    mixed = interleave_datasets(streams, probabilities=mixing(domains).tolist(), seed=0)
    return _in_batches((item["row"] for item in mixed), batch)


def noded(domains: int, size: int, batch: int) -> Batches:
    """Mix with MultiNodeWeightedSampler, streams: each row once, in the stream's order."""
    from torchdata.nodes import Batcher, IterableWrapper, Loader, MultiNodeWeightedSampler

    nodes = {str(i): IterableWrapper(range(i * size, (i + 1) * size)) for i in range(domains)}
    shares = {str(i): share for i, share in enumerate(mixing(domains).tolist())}
    return iter(Loader(Batcher(MultiNodeWeightedSampler(nodes, shares), batch)))


def grained(domains: int, size: int, batch: int) -> Batches:
    """Mix with grain, shuffled sources: exact rows without replacement, shuffled."""
    import grain.python as grain

    parts = [grain.MapDataset.source(Numbers(size)).shuffle(seed=i) for i in range(domains)]
    mixed = grain.MapDataset.mix([part.repeat() for part in parts], mixing(domains).tolist())
    return _in_batches((mixed[i] for i in range(10**9)), batch)


def _in_batches(rows: Iterator[int], batch: int) -> Batches:
    while found := list(islice(rows, batch)):
        yield found


METHODS: dict[str, tuple[str, Callable[[int, int, int], Batches]]] = {
    "adaptmix": ("torch", planned),
    "WeightedRandomSampler, with replacement": ("torch", weighted),
    "datasets.interleave_datasets": ("datasets", interleaved),
    "torchdata MultiNodeWeightedSampler": ("torchdata", noded),
    "grain MapDataset.mix": ("grain", grained),
}


def possible(name: str, domains: int, size: int) -> bool:
    """Whether a method is installed, and takes a mixture of this size."""
    method = METHODS[name][1]
    fits = method is not weighted or domains * size <= _MOST_WEIGHTS
    fits = fits and (method is not interleaved or domains <= _MOST_STREAMS)
    return fits and importlib.util.find_spec(METHODS[name][0]) is not None


def rate(name: str, case: tuple[int, int, int], *, rows: int = _ROWS) -> float:
    """Return rows per second of processor time, once the first rows are drawn."""
    batches = METHODS[name][1](*case)
    batch = case[2]
    next(batches)
    wanted, start = max(1, rows // batch), time.process_time()
    drawn = sum(len(found) for found in islice(batches, wanted))
    return drawn / (time.process_time() - start)


def peak(name: str, case: tuple[int, int, int]) -> float:
    """Return the MB that a process of its own needs at its peak, beyond its imports."""
    arguments = [name, *map(str, case)]
    command = [sys.executable, "-m", "tests.benchmarks.bench_plan", "--memory", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def memory(name: str, case: tuple[int, int, int]) -> float:
    """Return the MB that this process needs beyond what it has, at its peak."""
    rate(name, (2, 100, 8), rows=64)  # what is imported late
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate(name, case, rows=case[2] * 4)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


class Pages(Dataset[Tensor]):
    """Rows of 4 kB each, read from a file."""

    def __init__(self, path: Path, rows: int) -> None:
        self.file, self.rows = os.open(path, os.O_RDONLY), rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Tensor:
        page = bytearray(os.pread(self.file, _ROW_BYTES, row * _ROW_BYTES))
        return torch.frombuffer(page, dtype=torch.uint8)


class Timed:
    """A plan that knows how long drawing from it took."""

    def __init__(self, plan: Plan) -> None:
        self.seconds, self._steps = 0.0, plan.steps
        plan.steps = self.steps  # type: ignore[method-assign,assignment]

    def steps(self, *args: int, **options: int) -> Iterator[object]:
        source = self._steps(*args, **options)
        while True:
            start = time.process_time()
            found = next(source, None)
            self.seconds += time.process_time() - start
            if found is None:
                return
            yield found


def share_of_loading(domains: int, batch: int, steps: int) -> tuple[float, float]:
    """Return the share of a loader's time that planning takes, and µs per row in all."""
    each = 2**17 // domains
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages"
        path.write_bytes(os.urandom(_ROW_BYTES) * (each * domains))
        mixture = Mixture({str(i): Pages(path, each) for i in range(domains)})
        plan = Plan(mixture, shares=mixing(domains), lag=16, seed=0)
        loader = Loader(PlanSampler(plan, Layout(batch), steps=2 * steps))
        batches = iter(loader)
        for _ in islice(batches, steps):
            plan.advance()
        timed, start = Timed(plan), time.process_time()
        plan.starts, batches = 0, iter(loader)
        for _ in islice(batches, steps):
            plan.advance()
        total = time.process_time() - start
    return timed.seconds / total, 1e6 * total / (steps * batch)


def table(rounds: int) -> list[str]:
    """Return the lines of the table of rates and memory."""
    lines = ["| domains × rows, batch | method | rows/s | ms a batch | adaptmix's rate | MB |"]
    lines.append("|---|---|---|---|---|---|")
    for case in CASES:
        domains, size, batch = case
        names = [name for name in METHODS if possible(name, domains, size)]
        best = dict.fromkeys(names, 0.0)
        for _ in range(rounds):
            for name in names:
                # Slow methods get fewer rows, so that all take about as long.
                few = max(2**14, min(_ROWS, 2 ** int(np.log2(best[name] + 1))))
                best[name] = max(best[name], rate(name, case, rows=max(few, 4 * batch)))
        for name in names:
            lines.append(
                f"| {domains:,} × {size:,}, {batch:,} | {name} | {best[name]:,.0f} "
                f"| {1e3 * batch / best[name]:.2f} | {best['adaptmix'] / best[name]:.2f} × "
                f"| {peak(name, case):.0f} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        name, *case = args.memory
        print(memory(name, (int(case[0]), int(case[1]), int(case[2]))))
        return
    lines = [
        "## Planning rows",
        "",
        f"Setup: Python {platform.python_version()}, NumPy {np.__version__}, torch "
        f"{torch.__version__}, {platform.machine()}, load {os.getloadavg()[0]:.1f}, one thread; "
        f"processor time, best of {args.rounds} rounds in turn. MB: peak of a process of its own "
        "beyond its imports. WeightedRandomSampler takes at most 2²⁴ rows, and draws a row twice "
        "before others once.",
        "",
        *table(args.rounds),
        "",
        "### Share of a loader that reads 4 kB a row from a file in the page cache, no workers",
        "",
        "| domains | batch | µs a row | planning |",
        "|---|---|---|---|",
    ]
    for domains, batch, steps in ((4, 32, 500), (100, 1024, 64), (100, 256, 128)):
        best = min(share_of_loading(domains, batch, steps) for _ in range(args.rounds))
        lines.append(f"| {domains} | {batch} | {best[1]:.1f} | {100 * best[0]:.1f} % |")
        print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
