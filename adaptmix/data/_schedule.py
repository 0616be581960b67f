"""Which domain: how many rows of each a step has, from shares that take effect with a fixed lag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray, choice, integer
from adaptmix._types import COUNTS
from adaptmix.data._rounding import systematic_counts, whole_part
from adaptmix.errors import LagError, StateError
from adaptmix.state import _schema as schema

# Shares add up to 1 but for rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class StepCounts:
    """How many rows of each domain some optimizer steps in a row have.

    Attributes:
        counts: (S, K) int64 rows of each domain.
        domain_shares: (S, K) what multipliers divide by: a domain's realised share of the rows
            where every step is sure of one, its expected share otherwise. They need not add up
            to 1.
        orders: of each step (M,), the order in which its rows, sorted by domain, are trained.
        held: of each step (N,) bool, where held-out rows are among them, N − M; None without any.
    """

    counts: NDArray[np.int64]
    domain_shares: FloatArray
    orders: list[NDArray[np.int64]]
    held: list[NDArray[np.bool_] | None]


class LaggedShares:
    """Counts each step's rows per domain from the shares published ``lag`` steps before.

    Step t is counted with the shares published after step t − 1 − lag and a generator seeded by
    (seed, t). Within a step the counts are stratified, ⌊N·p⌋ or ⌈N·p⌉ with mean N·p, or
    multinomial: each row's domain drawn on its own, with the noise that this adds. A stratified
    domain with N·p ≥ 1 divides by its realised share, which is unbiased and quieter, any other by
    its expected one. It knows of no dataset.

    Args:
        shares: (K,) expected shares of rows until others take effect.
        lag: steps between publishing shares and drawing with them.
        seed: of every random choice.
        counts: "stratified" or "multinomial".
    """

    def __init__(self, shares: FloatArray, *, lag: int, seed: int, counts: str) -> None:
        self.lag = integer("lag", lag, minimum=0)
        self.seed = integer("seed", seed, minimum=0)
        self.counts = choice("counts", counts, COUNTS)
        self.completed = 0
        self._history: dict[int, FloatArray] = {0: shares}

    def advance(self) -> None:
        """Count one more trained step and forget the shares of earlier ones."""
        self.completed += 1
        in_force = max(step for step in self._history if step <= self.completed)
        for step in [step for step in self._history if step < in_force]:
            del self._history[step]

    def begin_with(self, shares: FloatArray) -> None:
        """Let ``shares`` (K,) of rows be in force from the first step, before anything is drawn."""
        self._history = {0: shares}

    def publish(self, shares: FloatArray, *, between_steps: bool = True) -> None:
        """Let ``shares`` (K,) of rows take effect ``lag`` steps after the next one to train.

        One step later when published while a step is trained (``between_steps=False``), for the
        loader may have drawn further by then than it had between steps.
        """
        self._history[self.completed + self.lag + (not between_steps)] = shares

    def shares_at(self, step: int) -> FloatArray:
        """Return the (K,) shares in force at a step.

        Raises:
            LagError: they may still change, because the step is more than ``lag`` ahead.
        """
        if step > self.completed + self.lag:
            raise LagError(
                f"lag must be at least the steps a loader runs ahead of training; got lag="
                f"{self.lag} when step {step} was drawn and step {self.completed} was next to "
                "train. Raise Controller(lag=...), or lower num_workers or prefetch_factor."
            )
        return self._history[max(start for start in self._history if start <= step)]

    def count(
        self, steps: Sequence[int], shares: FloatArray, *, size: int, held: Sequence[int]
    ) -> StepCounts:
        """Return how many of the ``size`` rows of each step every domain has.

        Args:
            steps: S optimizer steps.
            shares: (S, K) those in force at each step, or what is left of them.
            size: rows of a global batch.
            held: how many of them are held out in each step. The others are shared out as if they
                were the whole batch, and ``domain_shares`` are shares of the ``size`` rows all the
                same, so that multipliers are those of a batch without held-out rows.
        """
        trained = size - np.array(held, dtype=np.int64)[:, np.newaxis]
        generators = [
            np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(0, step)))
            for step in steps
        ]
        if self.counts == "multinomial":
            found = zip(generators, trained[:, 0], shares, strict=True)
            counts = np.array([rng.multinomial(rows, each) for rng, rows, each in found])
            divisors = shares
        else:
            expected = trained * shares
            counts = _stratified(expected, generators)
            # Domain by domain: one that may be absent makes no other noisier.
            divisors = np.where(whole_part(expected) >= 1, counts / trained, shares)
        orders = [rng.permutation(size) for rng in generators]
        apart: list[NDArray[np.bool_] | None] = [None] * len(orders)
        for place in np.flatnonzero(held).tolist():
            order = orders[place]
            aside = apart[place] = order >= trained[place]
            orders[place] = order[~aside]
        if any(held):
            divisors = divisors * (trained / size)
        return StepCounts(counts, divisors, orders, apart)

    def state_dict(self) -> dict[str, Any]:
        """Return position and history as plain arrays and numbers."""
        return {
            "completed": self.completed,
            "history_steps": np.array(sorted(self._history), dtype=np.int64),
            "history_shares": np.stack([self._history[step] for step in sorted(self._history)]),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "schedule") -> None:
        """Go back to a saved position.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        K = next(iter(self._history.values())).size
        fields = {
            "completed": schema.integer(),
            "history_steps": schema.array(None, dtype=np.int64, minimum=0),
            "history_shares": schema.array(None, K, minimum=0.0, maximum=1.0),
        }
        saved = schema.read(state, fields, name=name)
        completed, steps = saved["completed"], saved["history_steps"]
        shares = saved["history_shares"]
        known = steps.size > 0 and steps[0] <= completed and (np.diff(steps) > 0).all()
        if not known or steps[-1] > completed + self.lag + 1:
            raise StateError(
                f"{name}.history_steps must increase from at most {completed} to at most "
                f"{completed + self.lag + 1}; got {steps[:8].tolist()}."
            )
        if len(shares) != len(steps) or (np.abs(shares.sum(1) - 1.0) > _ROUNDING).any():
            raise StateError(
                f"{name}.history_shares must have {len(steps)} rows that sum to 1; got "
                f"{len(shares)} with sums {shares.sum(1)[:8].tolist()}."
            )
        self._history = dict(zip(steps.tolist(), shares, strict=True))
        self.completed = completed


def _stratified(
    expected: FloatArray, generators: Sequence[np.random.Generator]
) -> NDArray[np.int64]:
    """Round each step's (S, K) expected counts, with a generator each."""
    # In a new order each time, or neighbours would never be drawn together.
    S, K = expected.shape
    orders = np.array([rng.permutation(K) for rng in generators])
    orders += K * np.arange(S)[:, np.newaxis]  # places in all steps' counts
    drawn = np.array([rng.random() for rng in generators])
    counts = np.empty(S * K, dtype=np.int64)
    counts[orders] = systematic_counts(expected.ravel()[orders], drawn)
    return counts.reshape(S, K)
