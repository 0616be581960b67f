"""Trials of streams: runs that are stopped anywhere and gone on with in another way.

``python -m tests.trials.streamed --number 300`` runs so many, each of random sources, sizes, ways
to end, batches and moving shares. Every part of a run has another number of processes, workers and
micro-batches. Its rows must be those of one process that never stops, and each stream's rows those
that reading it yields, one after the other. Processes are played one after the other in this one;
workers and readers are real ones.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any

import numpy as np
import torch

from adaptmix import Mixture
from adaptmix.data import Layout, Loader, Plan, PlanSampler
from tests import streams

_STEPS, _APART = 40, 10_000


class Trial:
    """One run, made of a number.

    Args:
        seed: the number.
        workers: whether some parts have workers, which take longer.
    """

    def __init__(self, seed: int, *, workers: bool) -> None:
        self.rng = np.random.default_rng((2027, seed))
        self.workers, self.counted = workers, Counter[str]()
        self.kinds = [int(self.rng.integers(-1, len(streams.SOURCES))) for _ in range(3)]
        self.kinds[0] = max(0, self.kinds[0])  # one stream at least
        self.sizes = [int(size) for size in self.rng.integers(1, 130, 3)]
        way = str(self.rng.choice(["repeat", "stop_first", "stop_all", "drop"]))
        epochs = (
            int(self.rng.integers(1, 4)) if way != "repeat" and self.rng.random() < 0.5 else None
        )
        self.options: dict[str, Any] = {"when_exhausted": way, "max_epochs": epochs}
        self.seed, self.size = seed, int(self.rng.choice([8, 16, 24]))
        self.lag = int(self.rng.integers(2, 8))
        self.moves = self.rng.dirichlet(np.ones(3), _STEPS)

    def plan(self) -> Plan:
        """The plan of a process."""
        parts: dict[str, Any] = {}
        for place, (kind, size) in enumerate(zip(self.kinds, self.sizes, strict=True)):
            start = _APART * place
            stored = list(range(start, start + size))
            parts[f"d{place}"] = stored if kind < 0 else streams.SOURCES[kind](start, size)
        mixture = Mixture(parts)
        return Plan(mixture, shares=self.moves[0], lag=self.lag, seed=self.seed, **self.options)

    def train(
        self, state: Any, stop: int, *, world: int = 1, workers: int = 0, accumulation: int = 1
    ) -> tuple[list[list[int]], Any]:
        """Train up to a step; return the rows of each step, and the state."""
        each: list[list[list[int]]] = []
        plans = []
        batch = self.size // world // accumulation
        for rank in range(world):
            plan = self.plan()
            if state is not None:
                plan.load_state_dict(state)
            layout = Layout(batch, accumulation, rank, world)
            sampler = PlanSampler(plan, layout, steps=_STEPS)
            ahead: dict[str, Any] = {"prefetch_factor": 1} if workers else {}
            loader = Loader(sampler, num_workers=workers, collate_fn=streams.collate, **ahead)
            mine: list[list[int]] = []
            if len(loader) and plan.completed < stop:
                for micro, (rows, _) in enumerate(loader.with_draws(), start=1):
                    mine.append(rows.tolist())
                    if micro % accumulation == 0:
                        plan.advance()
                        plan.publish(self.moves[min(plan.completed, _STEPS - 1)])
                        if plan.completed == stop:
                            break
            each.append(mine)
            plans.append(plan)
        steps = [
            [row for micro in range(accumulation) for mine in each for row in mine[at + micro]]
            for at in range(0, len(each[0]), accumulation)
        ]
        return steps, plans[0].state_dict()

    def run(self) -> Counter[str]:
        """Train without a stop and with some; raises AssertionError where rows differ."""
        whole, _ = self.train(None, _STEPS)
        self.check_sources(whole)
        taken, state, done = len(whole), None, 0
        stops = sorted({int(stop) for stop in self.rng.integers(1, taken + 1, 3)}) if taken else []
        for stop in [*stops, _STEPS]:
            world = int(self.rng.choice([1, 2, 4]))
            accumulation = int(self.rng.choice([1, 2]))
            workers = int(self.rng.integers(0, 3)) if self.workers else 0
            rows, state = self.train(
                state, stop, world=world, workers=workers, accumulation=accumulation
            )
            assert rows == whole[done : min(stop, taken)], (self.__dict__, done, stop)
            self.counted.update(parts=1, processes=world, workers=workers * world)
            done = min(stop, taken)
        self.counted.update(trials=1, steps=taken, streams=sum(kind >= 0 for kind in self.kinds))
        return self.counted

    def check_sources(self, whole: list[list[int]]) -> None:
        """Each stream's rows are those that reading it yields, epoch by epoch."""
        for place, (kind, size) in enumerate(zip(self.kinds, self.sizes, strict=True)):
            drawn = [[row for row in step if row // _APART == place] for step in whole]
            times = Counter(row for step in drawn for row in step)
            if times:
                least = min(times.values()) if len(times) == size else 0
                assert max(times.values()) - least <= 1, (place, times)
            if kind in (0, 2, 3, 4, 5):  # in order
                number = 0
                for step in drawn:
                    want = [(number + k) % size + _APART * place for k in range(len(step))]
                    assert sorted(step) == sorted(want), (place, step, want)
                    number += len(step)


def main() -> None:
    """Run trials, and say what they were made of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--workers", action="store_true", help="real workers and readers, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, counted = time.monotonic(), Counter[str]()
    for seed in range(args.first, args.first + args.number):
        counted.update(Trial(seed, workers=args.workers).run())
    print(f"{time.monotonic() - start:.0f} s", dict(counted))


if __name__ == "__main__":
    main()
