"""Runs of a benchmark divided among processes: a file for each task and seed, then one table."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


def arguments(description: str | None, tasks: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser with ``--tasks``, ``--seeds``, ``--runs`` and ``--table``."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    known = list(tasks)
    parser.add_argument("--tasks", nargs="+", default=known, choices=known, metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)), metavar="SEED")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for what runs found")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    return parser


def fill(folder: Path, task: str, seeds: Iterable[int], run: Callable[[str, int], Any]) -> None:
    """Run the seeds of a task that the folder does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = folder / f"{_slug(task)}.{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(run(task, seed)))
            print(f"{task}, seed {seed}: done", flush=True)


def found(folder: Path, task: str) -> list[Any]:
    """Return what the runs of a task found, in the order of their seeds."""
    paths = folder.glob(f"{_slug(task)}.*.json")
    numbered = sorted((int(path.suffixes[-2][1:]), path) for path in paths)
    return [json.loads(path.read_text()) for _, path in numbered]


def mean_error(values: Any, digits: int = 4) -> str:
    """Return mean ± standard error over seeds."""
    values = np.asarray(values)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def _slug(task: str) -> str:
    return re.sub(r"\W+", "-", task)
