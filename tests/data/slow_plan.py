"""The plan as one would write it down: row by row, with loops, and everything from the start."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix.data._permutation import Permutations

SNAP = 1e-9


@dataclass
class SlowStep:
    """What a step is made of, in the order it is trained."""

    rows: list[int]
    domains: list[int]
    fresh: list[bool]
    divisors: list[float]
    spent: list[bool]


@dataclass
class SlowPlan:
    """The rows of a run, from the shares that were published for its steps.

    Attributes:
        sizes: rows of each domain.
        way: what ``when_exhausted`` says.
        limits: rows that each domain may give.
        seed: of the plan.
        size: rows of a step.
        horizon: steps of the run.
        published: shares by the step from which they are in force.
    """

    sizes: list[int]
    way: str
    limits: list[float]
    seed: int
    size: int
    horizon: int
    published: dict[int, FloatArray]
    steps: list[SlowStep] = field(default_factory=list)
    times: Counter[int] = field(default_factory=Counter)

    def step(self, number: int) -> SlowStep | None:
        """Return a step, after those before it; None where the run ends before it."""
        while len(self.steps) <= number:
            drawn = self._draw(len(self.steps))
            if drawn is None:
                return None
            self.steps.append(drawn)
        return self.steps[number]

    def drawn(self) -> list[int]:
        """Return how many rows of each domain all steps so far have."""
        return [sum(step.domains.count(i) for step in self.steps) for i in range(len(self.sizes))]

    def _draw(self, step: int) -> SlowStep | None:
        before = self.drawn()
        if self.way == "stop_all" and all(map(int.__ge__, before, self.sizes)):
            return None
        shares = self._shares(step, before)
        if shares is None:
            return None
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(0, step)))
        counts = self._counts(shares, rng)
        after = [a + b for a, b in zip(before, counts, strict=True)]
        if self.way == "stop_first" and any(a > b for a, b in zip(after, self.limits, strict=True)):
            return None
        domains = [i for i, count in enumerate(counts) for _ in range(count)]
        numbers = [before[i] + k for i, count in enumerate(counts) for k in range(count)]
        order = rng.permutation(self.size).tolist()
        rows = [self._row(domain, n) for domain, n in zip(domains, numbers, strict=True)]
        self.times.update(rows)
        divisors = [
            counts[i] / self.size if self.size * p >= 1 - SNAP else p for i, p in enumerate(shares)
        ]
        spent = [
            self.way != "stop_first" and a >= b for a, b in zip(before, self.limits, strict=True)
        ]
        return SlowStep(
            rows=[rows[k] for k in order],
            domains=[domains[k] for k in order],
            fresh=[numbers[k] < self.sizes[domains[k]] for k in order],
            divisors=divisors,
            spent=spent,
        )

    def _row(self, domain: int, number: int) -> int:
        epoch, place = divmod(number, self.sizes[domain])
        names = [f"d{i}" for i in range(len(self.sizes))]
        orders = Permutations(np.array(self.sizes), seed=self.seed, names=names)
        value = orders(np.array([domain]), np.array([epoch]), np.array([place]))
        return sum(self.sizes[:domain]) + int(value[0])

    def _shares(self, step: int, before: list[int]) -> list[float] | None:
        start = max(start for start in self.published if start <= step)
        shares: list[float] = self.published[start].tolist()
        if self.way == "stop_first":
            return shares
        left = [a - b for a, b in zip(self.limits, before, strict=True)]
        if self.way == "repeat":
            left = [rows / max(self.horizon - step, 1) for rows in left]
        most = [min(rows / self.size, 1.0) for rows in left]
        if sum(most) < 1 - SNAP:
            return None
        low, high = 0.0, 1e9  # the level at which bounded shares add up to one
        for _ in range(200):
            level = math.sqrt(low * high) if low > 1e-9 else (low + high) / 2
            full = sum(min(level * p, m) for p, m in zip(shares, most, strict=True)) >= 1
            low, high = (low, level) if full else (level, high)
        return [min(high * p, m) for p, m in zip(shares, most, strict=True)]

    def _counts(self, shares: list[float], rng: np.random.Generator) -> list[int]:
        """Madow's systematic sampling of the fractions, domain by domain in a random order."""
        order = rng.permutation(len(shares)).tolist()
        counts = [math.floor(self.size * p + SNAP) for p in shares]
        fractions = [max(self.size * p - c, 0.0) for p, c in zip(shares, counts, strict=True)]
        missing, tick = self.size - sum(counts), rng.random()
        if missing <= 0:
            return counts
        fractions = [0.0 if f < SNAP else f for f in fractions]
        scale, edge, given = missing / sum(fractions), 0.0, 0
        last = max(k for k, i in enumerate(order) if fractions[i] > 0.0)
        for k, i in enumerate(order):
            edge = edge + fractions[i] * scale if k < last else float(missing)
            reached = min(math.floor(edge + tick), missing)
            counts[i] += reached - given
            given = reached
        return counts
