"""How fast streams are read, beside the same sources read through ``interleave_datasets``.

Run ``python -m tests.benchmarks.bench_streams`` from the repository's root; it writes
results/streams.md. Without workers, rates are of the process's own processor time. With workers
they are of the clock, so that the machine must be idle: ``--workers 0`` leaves these out. Both ways
take turns, and the best round of each counts. Both end in batches of a ``DataLoader``.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader

from adaptmix.data import Layout, Loader, Mixture, Plan, PlanSampler

RESULTS = Path(__file__).parent / "results" / "streams.md"
_BATCH, _SHARDS = 32, 8


class Case(NamedTuple):
    """What a source is, how many of them there are, and the rows that are read in a round."""

    name: str
    domains: int
    rows: int
    make: Callable[[int, str], Any]


def numbers(domain: int, _folder: str) -> Any:
    """Rows of one number, of an Arrow table in memory."""
    stored = datasets.Dataset.from_dict({"x": np.arange(20_000) + domain})
    return stored.to_iterable_dataset(num_shards=_SHARDS)


def texts(domain: int, folder: str) -> Any:
    """Rows of 4 kB of text, of Parquet files."""
    path = Path(folder) / f"{domain}"
    if not path.exists():
        path.mkdir()
        rng = np.random.default_rng(domain)
        for shard in range(_SHARDS):
            words = ["".join(map(chr, rng.integers(97, 123, 4096))) for _ in range(250)]
            datasets.Dataset.from_dict({"text": words}).to_parquet(path / f"{shard}.parquet")
    files = sorted(map(str, path.glob("*.parquet")))
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def mapped(domain: int, folder: str) -> Any:
    """The same texts, in each of which a function in Python counts letters."""

    def count(row: dict[str, Any]) -> dict[str, Any]:
        return {"x": sum(letter in "aeiou" for letter in row["text"][:1024])}

    return texts(domain, folder).map(count, remove_columns=["text"])


CASES = [
    Case("one number", 4, 32_000, numbers),
    Case("one number", 32, 32_000, numbers),
    Case("4 kB of text", 4, 16_000, texts),
    Case("4 kB of text, mapped in Python", 4, 4_000, mapped),
]


def shares(domains: int) -> list[float]:
    """Uneven shares, the same for both."""
    drawn = np.random.default_rng(0).dirichlet(np.ones(domains)) + 1 / domains
    return [float(share) for share in drawn / drawn.sum()]


def interleaved(case: Case, folder: str, workers: int) -> Iterable[Any]:
    """Batches of ``interleave_datasets``."""
    mixed = datasets.interleave_datasets(
        [case.make(domain, folder) for domain in range(case.domains)],
        probabilities=shares(case.domains),
        seed=0,
        stopping_strategy="all_exhausted",
    )
    return DataLoader(mixed, batch_size=_BATCH, num_workers=workers)


def adaptmix(case: Case, folder: str, workers: int) -> Iterable[Any]:
    """Batches of a mixture of the same streams."""
    parts = {f"d{domain}": case.make(domain, folder) for domain in range(case.domains)}
    mixture = Mixture(parts)
    plan = Plan(mixture, shares=np.array(shares(case.domains)), lag=16, seed=0)
    steps = 2 * case.rows // _BATCH
    sampler = PlanSampler(plan, Layout(_BATCH), steps=steps)

    def trained() -> Iterable[Any]:
        for batch in Loader(sampler, num_workers=workers):
            yield batch
            plan.advance()

    return trained()


def seconds(batches: Iterable[Any], count: int, clock: Callable[[], float]) -> float:
    """The time that so many batches take, after the first ones."""
    given = iter(batches)
    for _ in islice(given, 8):
        pass
    start = clock()
    for _ in islice(given, count):
        pass
    return clock() - start


def measure(case: Case, folder: str, workers: int, rounds: int) -> tuple[float, float]:
    """Rows a second of both ways, the best of some rounds."""
    clock = time.perf_counter if workers else time.process_time
    count = case.rows // _BATCH
    best = [float("inf")] * 2
    for _ in range(rounds):
        for place, way in enumerate((interleaved, adaptmix)):
            taken = seconds(way(case, folder, workers), count, clock)
            best[place] = min(best[place], taken)
    return count * _BATCH / best[0], count * _BATCH / best[1]


def main() -> None:
    """Measure all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    lines = [
        "# Streams beside interleave_datasets",
        "",
        f"Rows a second of batches of {_BATCH}, the best of {options.rounds} rounds; 8 shards a "
        f"stream. datasets {datasets.__version__}, torch {torch.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} cores. Without workers of the process's own time, "
        "with workers of the clock.",
        "",
        "| rows | domains | workers | interleave_datasets | AdaptMix | ratio |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for workers in options.workers:
            for case in CASES:
                other, own = measure(case, folder, workers, options.rounds)
                lines.append(
                    f"| {case.name} | {case.domains} | {workers} | {other:,.0f} | {own:,.0f} | "
                    f"{own / other:.2f} |"
                )
                print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
