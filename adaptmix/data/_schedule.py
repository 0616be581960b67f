"""Which domain: how many rows of each a step has, from shares that take effect with a fixed lag."""

from __future__ import annotations

from collections.abc import Mapping
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
    """How many rows of each domain an optimizer step has.

    Attributes:
        counts: (K,) int64 rows of each domain.
        domain_shares: (K,) what multipliers divide by: a domain's realised share of the rows where
            every step is sure of one, its expected share otherwise. They need not add up to 1.
        order: (M,) the order in which the step's rows, sorted by domain, are trained.
        held: (N,) bool, where held-out rows are among them; N − M.
    """

    counts: NDArray[np.int64]
    domain_shares: FloatArray
    order: NDArray[np.int64]
    held: NDArray[np.bool_]


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

    def step(self, step: int, shares: FloatArray, *, size: int, held: int = 0) -> StepCounts:
        """Return how many of a step's ``size`` rows each domain has.

        Args:
            step: the optimizer step.
            shares: (K,) those in force at the step, or what is left of them.
            size: rows of its global batch.
            held: how many of them are held out. The others are shared out as if they were the
                whole batch, and ``domain_shares`` are shares of the ``size`` rows all the same, so
                that multipliers are those of a batch without held-out rows.
        """
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(0, step)))
        trained = size - held
        counts, divisor = self._counts(shares, trained, rng)
        divisor = divisor * (trained / size) if held else divisor
        order = rng.permutation(size)
        apart = order >= trained
        return StepCounts(counts, divisor, order[~apart] if held else order, apart)

    def _counts(
        self, shares: FloatArray, size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], FloatArray]:
        if self.counts == "multinomial":
            return rng.multinomial(size, shares), shares
        # In a new order each time, or neighbours would never be drawn together.
        order = rng.permutation(shares.size)
        counts = np.empty(shares.size, dtype=np.int64)
        counts[order] = systematic_counts(size * shares[order], rng.random())
        # Domain by domain: one that may be absent makes no other noisier.
        return counts, np.where(whole_part(size * shares) >= 1, counts / size, shares)

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
