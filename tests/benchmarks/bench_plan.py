"""How fast rows are planned, beside other ways to mix, and what planning is of a loader's time.

Run ``python -m tests.benchmarks.bench_plan`` from the repository's root; it writes results/plan.md,
in six minutes of one core. Peers that are not installed are left out: ``pip install datasets
torchdata grain``.

Rates are of processor time in the calling process, for lists of row numbers, one list per batch.
Methods take turns, and the best round of each counts. Memory is what a process of its own has at
its peak beyond what its imports take.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, WeightedRandomSampler

from adaptmix._checks import FloatArray
from adaptmix.data import Layout, Loader, Mixture, Plan, PlanSampler

RESULTS = Path(__file__).parent / "results" / "plan.md"
# torch.multinomial takes no more weights than this. Of more domains than this, interleave_datasets
# opens too many files, and the other peers take minutes for a batch.
_MOST_WEIGHTS, _MOST_DOMAINS = 2**24, 1000
_ROW_BYTES, _PAGES = 4096, 4096

Batches = Iterator[list[int]]


class Case(NamedTuple):
    """Domains, rows of each, rows of a batch, and how many are drawn in a measurement."""

    domains: int
    size: int
    batch: int
    rows: int = 2**18


CASES = [
    Case(2, 500_000, 32),
    Case(2, 500_000_000_000, 32),
    Case(100, 10_000, 1024),
    Case(100, 10**8, 1024),
    Case(100, 10**10, 1024),
    Case(10_000, 100, 16_384),
    Case(10_000, 10**8, 16_384),
]


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


def planned(case: Case) -> Batches:
    """Plan with adaptmix: exact rows without replacement, shuffled in each epoch."""
    mixture = Mixture({str(i): Numbers(case.size) for i in range(case.domains)})
    plan = Plan(mixture, shares=mixing(case.domains), lag=10**6, seed=0)
    return iter(PlanSampler(plan, Layout(case.batch), steps=10**6))


def weighted(case: Case) -> Batches:
    """Draw with WeightedRandomSampler: with replacement."""
    weights = np.repeat(mixing(case.domains) / case.size, case.size)
    sampler = WeightedRandomSampler(torch.from_numpy(weights), case.rows)  # type: ignore[arg-type]
    return iter(BatchSampler(sampler, case.batch, drop_last=True))


def interleaved(case: Case) -> Batches:
    """Mix with interleave_datasets, streams: each row once, in the stream's order."""
    from datasets import IterableDataset, interleave_datasets

    def stream(start: int) -> Iterator[dict[str, int]]:
        return ({"row": row} for row in range(start, start + case.size))

    streams = [
        IterableDataset.from_generator(stream, gen_kwargs={"start": i * case.size})
        for i in range(case.domains)
    ]
    mixed = interleave_datasets(streams, probabilities=mixing(case.domains).tolist(), seed=0)
    return _in_batches((item["row"] for item in mixed), case.batch)


def noded(case: Case) -> Batches:
    """Mix with MultiNodeWeightedSampler, streams: each row once, in the stream's order."""
    from torchdata.nodes import Batcher, IterableWrapper, Loader, MultiNodeWeightedSampler

    nodes = {
        str(i): IterableWrapper(range(i * case.size, (i + 1) * case.size))
        for i in range(case.domains)
    }
    shares = {str(i): share for i, share in enumerate(mixing(case.domains).tolist())}
    return iter(Loader(Batcher(MultiNodeWeightedSampler(nodes, shares), case.batch)))


def grained(case: Case) -> Batches:
    """Mix with grain, shuffled sources: exact rows without replacement, shuffled."""
    import grain.python as grain

    parts = [
        grain.MapDataset.source(Numbers(case.size)).shuffle(seed=i) for i in range(case.domains)
    ]
    mixed = grain.MapDataset.mix([part.repeat() for part in parts], mixing(case.domains).tolist())
    return _in_batches((mixed[i] for i in range(10**9)), case.batch)


def _in_batches(rows: Iterator[int], batch: int) -> Batches:
    while found := list(islice(rows, batch)):
        yield found


METHODS: dict[str, tuple[str, Callable[[Case], Batches]]] = {
    "adaptmix": ("torch", planned),
    "WeightedRandomSampler, with replacement": ("torch", weighted),
    "datasets.interleave_datasets": ("datasets", interleaved),
    "torchdata MultiNodeWeightedSampler": ("torchdata", noded),
    "grain MapDataset.mix": ("grain", grained),
}


def possible(name: str, case: Case) -> bool:
    """Whether a method is installed, and takes a mixture of this size."""
    method = METHODS[name][1]
    fits = method is not weighted or case.domains * case.size <= _MOST_WEIGHTS
    fits = fits and (method in (planned, weighted) or case.domains <= _MOST_DOMAINS)
    return fits and importlib.util.find_spec(METHODS[name][0]) is not None


def rate(name: str, case: Case) -> float:
    """Return rows per second of processor time, from when the first of them is asked for."""
    batches = METHODS[name][1](case)
    start = time.process_time()
    drawn = sum(len(found) for found in islice(batches, case.rows // case.batch))
    return drawn / (time.process_time() - start)


def peak(name: str, case: Case) -> float:
    """Return the MB that a process of its own needs at its peak, beyond its imports."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_plan", "--memory", name]
    result = subprocess.run([*command, *map(str, case)], capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def memory(name: str, case: Case) -> float:
    """Return the MB that this process needs beyond what it has, at its peak."""
    rate(name, Case(2, 100, 8, 64))  # what is imported late
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    rate(name, case)
    return _resident("VmHWM") - before


def _resident(kind: str) -> float:
    """Return this process's memory in MB, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


class Pages(Dataset[Tensor]):
    """Rows of 4 kB each, read from a file of 16 MB."""

    def __init__(self, path: Path, rows: int) -> None:
        self.file, self.rows = os.open(path, os.O_RDONLY), rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Tensor:
        page = bytearray(os.pread(self.file, _ROW_BYTES, row % _PAGES * _ROW_BYTES))
        return torch.frombuffer(page, dtype=torch.uint8)


class Timed(Sampler[list[int]]):
    """A batch sampler that knows how long it took."""

    seconds = 0.0

    def __iter__(self) -> Iterator[list[int]]:
        source = super().__iter__()
        while True:
            start = time.process_time()
            found = next(source, None)
            self.seconds += time.process_time() - start
            if found is None:
                return
            yield found


class TimedPlan(Timed, PlanSampler):
    """Ours."""


class TimedBatches(Timed, BatchSampler):
    """torch's."""


def pages(folder: Path, domains: int) -> Mixture:
    """Rows of 4 kB that are read from a file in the page cache."""
    path = folder / "pages"
    path.write_bytes(os.urandom(_ROW_BYTES * _PAGES))
    return Mixture({str(i): Pages(path, 2**20 // domains) for i in range(domains)})


def texts(folder: Path, domains: int) -> Mixture:
    """Rows of 4 kB of text, of Hugging Face datasets in the page cache."""
    from datasets import Dataset as Table
    from datasets import disable_progress_bars, load_from_disk

    disable_progress_bars()
    parts = {}
    for i in range(domains):
        rows = [f"{i} {row} ".ljust(_ROW_BYTES, ".") for row in range(_PAGES // domains)]
        Table.from_dict({"text": rows}).save_to_disk(folder / str(i))
        parts[str(i)] = load_from_disk(folder / str(i))
    return Mixture(parts)


def share_of_loading(
    rows: Callable[[Path, int], Mixture], domains: int, batch: int, steps: int
) -> tuple[float, float, float]:
    """Return what our batch sampler and torch's take of a loader's time, and µs per row in all."""
    with tempfile.TemporaryDirectory() as folder:
        mixture = rows(Path(folder), domains)
        plan = Plan(mixture, shares=mixing(domains), lag=16, seed=0)
        weights = np.repeat(mixing(domains) / mixture.sizes, mixture.sizes)
        drawn = 2 * steps * batch
        chosen = WeightedRandomSampler(torch.from_numpy(weights), drawn)  # type: ignore[arg-type]
        ours = TimedPlan(plan, Layout(batch), steps=2 * steps)
        theirs = TimedBatches(chosen, batch, drop_last=True)
        found = []
        for sampler, loader in (
            (ours, Loader(ours)),
            (theirs, DataLoader(mixture, batch_sampler=theirs)),
        ):
            batches = iter(loader)
            for number in range(2 * steps):
                if number == (steps if sampler is ours else 0):  # the first ones warm up
                    sampler.seconds, start = 0.0, time.process_time()
                next(batches)
                plan.advance()
            total = time.process_time() - start
            found.append((sampler.seconds / total, total))
    return found[0][0], found[1][0], 1e6 * found[0][1] / (steps * batch)


LOADED = {"a file, bare tensors": pages, "Hugging Face datasets, text": texts}


def table(rounds: int) -> list[str]:
    """Return the lines of the table of rates and memory."""
    lines = ["| domains × rows, batch | method | rows/s | ms a batch | adaptmix's rate | MB |"]
    lines.append("|---|---|---|---|---|---|")
    for case in CASES:
        domains, size, batch, most = case
        names = [name for name in METHODS if possible(name, case)]
        best = dict.fromkeys(names, 0.0)
        for _ in range(rounds):
            for name in names:
                # Slow methods get fewer rows, so that all take about as long.
                rows = min(most, 2 ** int(np.log2(best[name] + 1)))
                once = case._replace(rows=max(rows, 2**14, 4 * batch))
                best[name] = max(best[name], rate(name, once))
        for name in names:
            lines.append(
                f"| {domains:,} × {size:,}, {batch:,} | {name} | {best[name]:,.0f} "
                f"| {1e3 * batch / best[name]:.2f} | {best['adaptmix'] / best[name]:.2f} × "
                f"| {peak(name, case._replace(rows=4 * batch)):.0f} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        name, *case = args.memory
        print(memory(name, Case(*map(int, case))))
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
        "### Share of a loader that reads 4 kB a row from the page cache, no workers",
        "",
        "What drawing takes of the whole. With WeightedRandomSampler that is row numbers alone,",
        "drawn before the first batch; adaptmix draws what weights and records a row, too.",
        "",
        "| rows | domains | batch | µs a row | adaptmix | WeightedRandomSampler |",
        "|---|---|---|---|---|---|",
    ]
    for (what, rows), (domains, batch, steps) in itertools.product(
        LOADED.items(), ((4, 32, 400), (100, 256, 128), (100, 1024, 64))
    ):
        rounds = [share_of_loading(rows, domains, batch, steps) for _ in range(args.rounds)]
        ours, theirs, each = np.median(rounds, axis=0)
        lines.append(
            f"| {what} | {domains} | {batch} | {each:.1f} | {100 * ours:.1f} % "
            f"| {100 * theirs:.1f} % |"
        )
        print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
