"""The fixed-lag plan: which rows each optimizer step trains on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray, choice, integer
from adaptmix._types import COUNTS
from adaptmix.data._mixture import Mixture
from adaptmix.data._permutation import Feistel, Table, permutation
from adaptmix.data._rounding import systematic_counts, whole_part
from adaptmix.errors import LagError, StateError
from adaptmix.state import _schema as schema

# Steps that are drawn at once.
_TOGETHER = 8
# Shares add up to 1 but for rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class StepRows:
    """The global batch of one optimizer step, over all micro-batches and processes.

    Attributes:
        step: the optimizer step.
        rows: (N,) int64 rows, in random order.
        domains: (N,) int64 domain of each row.
        fresh: (N,) bool, whether the run draws the row for the first time.
        domain_shares: (K,) what multipliers divide by: a domain's realised share of the rows where
            every step is sure of one, its expected share otherwise. They need not add up to 1.
        row_shares: (K,) every domain's realised share of the rows.
    """

    step: int
    rows: NDArray[np.int64]
    domains: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    domain_shares: FloatArray
    row_shares: FloatArray

    def in_order(self, order: NDArray[np.int64]) -> StepRows:
        """Return the same rows, with all that belongs to them, in another order."""
        return replace(
            self,
            rows=self.rows[order],
            domains=self.domains[order],
            fresh=self.fresh[order],
        )


class Plan:
    """Draws every step's rows from the shares published ``lag`` steps before.

    Step t is drawn with the shares published after step t − 1 − lag and a generator seeded by
    (seed, t). What is drawn therefore depends neither on workers nor on prefetching nor on the
    number of processes, and a checkpoint needs only the step, how many rows each domain has
    given, and a short history of shares.

    Within a step the domains' counts are stratified, ⌊N·p⌋ or ⌈N·p⌉ with mean N·p, or multinomial:
    each row's domain drawn on its own, with the noise that this adds. A stratified domain with
    N·p ≥ 1 divides by its realised share, which is unbiased and quieter, any other by its expected
    one. Within a domain, rows come without replacement, in a new random order each time the domain
    is used up.

    Args:
        mixture: where rows come from.
        shares: (K,) expected shares of rows until others take effect.
        lag: steps between publishing shares and drawing with them; at least how far the loader
            runs ahead of training.
        seed: of every random choice.
        counts: "stratified" or "multinomial".
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        shares: FloatArray,
        lag: int,
        seed: int,
        counts: str = "stratified",
    ) -> None:
        self.mixture = mixture
        self.counts = choice("counts", counts, COUNTS)
        self.lag = integer("lag", lag, minimum=0)
        self.seed = integer("seed", seed, minimum=0)
        self.completed = 0
        self.starts = 0  # how often drawing has begun
        self._history: dict[int, FloatArray] = {0: shares}
        self._drawn: dict[int, NDArray[np.int64]] = {
            0: np.zeros(len(mixture.domains), dtype=np.int64)
        }

    def advance(self) -> None:
        """Count one more trained step and forget what only earlier steps needed."""
        self.completed += 1
        for step in [step for step in self._drawn if step < self.completed]:
            del self._drawn[step]
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

    def steps(self, start: int, stop: int, *, size: int) -> Iterator[StepRows]:
        """Draw steps ``start`` … ``stop`` − 1 with ``size`` rows each, as they are asked for.

        A few are drawn together, as far as the shares in force are known: one by one, in between
        training steps that leave nothing of the drawing in the caches, each takes several times as
        long.
        """
        self.starts += 1
        drawing = self._draw(start, stop, size)
        ahead: deque[StepRows] = deque()
        for step in range(start, stop):
            if not ahead:
                known = self.completed + self.lag + 1 - step
                ahead.extend(islice(drawing, max(1, min(_TOGETHER, known))))
            yield ahead.popleft()

    def _draw(self, start: int, stop: int, size: int) -> Iterator[StepRows]:
        sizes = self.mixture.sizes.tolist()
        orders: dict[tuple[int, int], Table | Feistel] = {}
        drawn = self._drawn[start]
        for step in range(start, stop):
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(0, step)))
            counts, divisor = self._counts(self.shares_at(step), size, rng)
            present = np.flatnonzero(counts)
            rows, fresh = [], []
            for domain, count, rank in zip(
                present.tolist(), counts[present].tolist(), drawn[present].tolist(), strict=True
            ):
                for epoch, places in _epochs(rank, count, sizes[domain]):
                    if (domain, epoch) not in orders:
                        orders.pop((domain, epoch - 1), None)
                        orders[domain, epoch] = self._order(domain, epoch)
                    rows.append(self.mixture.rows_of(domain, orders[domain, epoch](places)))
                    fresh.append(np.full(places.size, epoch == 0))
            shuffle = rng.permutation(size)
            drawn = drawn + counts
            self._drawn[step + 1] = drawn
            yield StepRows(
                step=step,
                rows=np.concatenate(rows)[shuffle],
                domains=np.repeat(present, counts[present])[shuffle],
                fresh=np.concatenate(fresh)[shuffle],
                domain_shares=divisor,
                row_shares=counts / size,
            )

    def _counts(
        self, shares: FloatArray, size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Return each domain's rows of a step, and the shares that multipliers divide by."""
        if self.counts == "multinomial":
            return rng.multinomial(size, shares), shares
        # In a new order each time, or neighbours would never be drawn together.
        order = rng.permutation(shares.size)
        counts = np.empty(shares.size, dtype=np.int64)
        counts[order] = systematic_counts(size * shares[order], rng.random())
        # Domain by domain: one that may be absent makes no other noisier.
        return counts, np.where(whole_part(size * shares) >= 1, counts / size, shares)

    def _order(self, domain: int, epoch: int) -> Table | Feistel:
        size = int(self.mixture.sizes[domain])
        seed = np.random.SeedSequence(self.seed, spawn_key=(1, domain, epoch))
        return permutation(size, seed=seed)

    def state_dict(self) -> dict[str, Any]:
        """Return position and history as plain arrays and numbers."""
        return {
            "completed": self.completed,
            "drawn": self._drawn[self.completed],
            "history_steps": np.array(sorted(self._history), dtype=np.int64),
            "history_shares": np.stack([self._history[step] for step in sorted(self._history)]),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "plan") -> None:
        """Go back to a saved position; the mixture must be the saved one.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        K = len(self.mixture.domains)
        fields = {
            "completed": schema.integer(),
            "drawn": schema.array(K, dtype=np.int64, minimum=0),
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
        self._drawn = {completed: saved["drawn"]}
        self.completed = completed


def _epochs(rank: int, count: int, size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each epoch, and the positions in it, of a domain's next ``count`` rows."""
    while count:
        epoch, start = divmod(rank, size)
        stop = min(start + count, size)
        yield epoch, np.arange(start, stop)
        rank, count = rank + stop - start, count - (stop - start)
