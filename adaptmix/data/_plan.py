"""The plan: which rows each optimizer step trains on, of which domains."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray
from adaptmix._schedule import Course
from adaptmix._simplex import normalise
from adaptmix.data._budget import Budget
from adaptmix.data._holdout import Holdout
from adaptmix.data._mixture import Mixture
from adaptmix.data._repeats import Repeats
from adaptmix.data._rounding import upper_part
from adaptmix.data._schedule import LaggedShares, StepCounts
from adaptmix.data._step_rows import StepRows
from adaptmix.data._stream_rows import StreamRows
from adaptmix.state import _schema as schema
from adaptmix.state._identity import describe

_log = logging.getLogger("adaptmix")
# Steps that are drawn at once, as long as they have no more rows than fit a processor's caches.
_STEPS = 16
_ROWS = 16384


class Plan:
    """Draws every step's rows: a schedule says how many of each domain, row sources say which.

    What is drawn depends neither on workers nor on prefetching nor on the number of processes, and
    a checkpoint needs only the step, how many rows each domain has given, and a short history of
    shares.

    Args:
        mixture: where rows come from.
        shares: as for ``LaggedShares``.
        lag: as for ``LaggedShares``.
        seed: as for ``LaggedShares``, and of each domain's order of rows.
        counts: as for ``LaggedShares``.
        when_exhausted: as for ``Budget``.
        max_epochs: as for ``Budget``.
        seed_rows: whether what rows and collators draw at random follows from ``seed``.
        course: what schedules make of shares; nothing when None.
        holdout: rows of the mixture that ride in measured steps; none when None.

    Raises:
        ValueError: rows that are counted independently, and a limit that they might pass.

    Attributes:
        budget: how often rows may be drawn.
        end: the step before which the run ends, for its rows are used up; None while not known.
        repeats: which steps train the rows of earlier ones again; none at first.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        shares: FloatArray,
        lag: int,
        seed: int,
        counts: str = "stratified",
        when_exhausted: str = "repeat",
        max_epochs: Mapping[str, float] | float | None = None,
        course: Course | None = None,
        seed_rows: bool = True,
        holdout: Holdout | None = None,
    ) -> None:
        self.mixture = mixture
        self._holdout = Holdout.nothing(mixture) if holdout is None else holdout
        self.schedule = LaggedShares(shares, lag=lag, seed=seed, counts=counts)
        self._source = mixture.row_source(seed=seed)
        self.budget = self._limits = Budget(
            mixture.domains,
            mixture.sizes,
            when_exhausted=when_exhausted,
            max_epochs=max_epochs,
            streams=list(mixture.streams),
        )
        if counts == "multinomial" and self.budget.bounds:
            raise ValueError(
                'counts must be "stratified" where max_epochs bounds shares; got "multinomial", '
                "which may draw more rows than are left."
            )
        self._course = course
        self.row_seed = seed if seed_rows else None
        self.streams = StreamRows(mixture, seed=self.row_seed, ends=bool(self.budget))
        self.end: int | None = None
        self._horizon = self._size = 1
        self._told: NDArray[np.bool_] | None = None
        self.starts = 0  # how often drawing has begun
        self.repeats = Repeats()
        # Domains whose rows were drawn before the mixture changed: none of them is fresh.
        self._trained_before = np.zeros(len(mixture.domains), dtype=np.bool_)
        self._drawn: dict[int, NDArray[np.int64]] = {
            0: np.zeros(len(mixture.domains), dtype=np.int64)
        }

    @property
    def completed(self) -> int:
        """Optimizer steps trained."""
        return self.schedule.completed

    @property
    def lag(self) -> int:
        """Steps between publishing shares and drawing with them."""
        return self.schedule.lag

    @property
    def seed(self) -> int:
        """Of every random choice."""
        return self.schedule.seed

    @property
    def counts(self) -> str:
        """How a step's rows are shared out: "stratified" or "multinomial"."""
        return self.schedule.counts

    @property
    def settings(self) -> dict[str, Any]:
        """What a run that goes on must have in common with this one, in plain values."""
        return {
            "seed": self.seed,
            "lag": self.lag,
            "counts": self.counts,
            "row_source": describe(type(getattr(self._source, "stored", self._source))),
            "streams": self.streams.names,
            "seed_rows": self.row_seed is not None,
            **self.budget.settings,
        }

    def advance(self) -> None:
        """Count one more trained step and forget what only earlier steps needed."""
        self.schedule.advance()
        for step in [step for step in self._drawn if step < self.completed]:
            del self._drawn[step]
        self.streams.forget_before(self.completed)

    def begin_streams(self, step: int, part: tuple[int, int]) -> None:
        """Go to the rows of a step in all streams, as ``StreamRows.begin`` does."""
        self.budget = self._limits.with_sizes(self.streams.begin(step, part))

    def publish(self, shares: FloatArray, *, between_steps: bool = True) -> None:
        """Let ``shares`` (K,) of rows take effect: at once before anything is drawn, else as due.

        Args:
            shares: of rows.
            between_steps: as for ``LaggedShares.publish``.
        """
        if self.untouched:
            self.schedule.begin_with(shares)
        else:
            self.schedule.publish(shares, between_steps=between_steps)

    @property
    def untouched(self) -> bool:
        """Whether nothing was drawn yet, so that shares may hold from the first batch on."""
        return not (self.starts or self.completed)

    def check(self, *, size: int, horizon: int) -> None:
        """Check that there are rows for what is left of a run.

        Args:
            size: rows of a step.
            horizon: optimizer steps of the whole run.

        Raises:
            ValueError: there are too few.
        """
        self.budget.check(self._drawn[self.completed], size * (horizon - self.completed))

    def steps(
        self, start: int, stop: int, *, size: int, horizon: int | None = None
    ) -> Iterator[StepRows]:
        """Draw steps ``start`` … ``stop`` − 1 with ``size`` rows each, as they are asked for.

        A few are drawn together, as far as the shares in force are known: what they cost is mostly
        the same however many rows there are. There are fewer steps where rows are used up.

        Args:
            start: the first step.
            stop: the step before which to stop.
            size: rows of a step.
            horizon: optimizer steps of the whole run, over which limits are spread; ``stop`` when
                None.

        Raises:
            ObjectiveError: steps train the rows of streams again.
        """
        self.repeats.check(streamed=bool(self.mixture.streams))
        self.starts += 1
        self.end, self._size = None, size
        self._horizon = stop if horizon is None else horizon
        step = start
        most = 1 if self.mixture.streams and self.budget else _STEPS  # ends are found by reading
        while step < stop:
            again = self.repeats.again(step)
            if again is not None:
                self._drawn[step + 1] = self._drawn[step]
                yield again
                step += 1
                continue
            known = self.completed + self.lag + 1 - step
            known = self.repeats.left(step, min(known, stop - step))
            together = max(1, min(most, _ROWS // size, known))
            drawn = self._draw(range(step, step + together), size)
            self.repeats.keep(drawn)
            yield from drawn
            step += len(drawn)
            if len(drawn) < together:
                self.end = step
                return

    def shares_at(self, step: int, *, held: int = 0) -> FloatArray | None:
        """Return the (K,) expected shares of a step whose predecessors are drawn; None at the end.

        Args:
            step: the optimizer step.
            held: how many of its rows are held out.

        Raises:
            LagError: as ``LaggedShares.shares_at`` does.
        """
        shares = self.schedule.shares_at(step)
        if self._course:
            shares = normalise(shares * self._course.factors(step))
        if not self.budget:
            return shares
        drawn, left, size = self._drawn[step], self._horizon - step, self._size - held
        bounded = self.budget.shares(shares, drawn, size=size, steps=left)
        while bounded is not None and self._found_ends(step, drawn + upper_part(size * bounded)):
            bounded = self.budget.shares(shares, drawn, size=size, steps=left)
        return bounded

    def _found_ends(self, step: int, numbers: NDArray[np.int64]) -> bool:
        """Return whether a stream was found to end before a row, which the budget knows then."""
        found = self.streams.find_ends(step, numbers)
        if found is not None:
            self.budget = self._limits.with_sizes(found)
        return found is not None

    def _draw(self, steps: range, size: int) -> list[StepRows]:
        K, before = self._trained_before.size, self._drawn[steps.start]
        riding = [self._holdout.of_step(step, size) for step in steps]
        parts = self._counted(steps, size, [len(held) for held in riding])
        if not parts:
            return []
        counts = parts[0].counts if len(parts) == 1 else np.concatenate([p.counts for p in parts])
        drawn = before + np.cumsum(counts, axis=0)
        self._drawn |= dict(zip(range(steps.start + 1, steps.stop + 1), drawn, strict=False))
        # The k-th row of a domain in the step is number k of those after the ones drawn before.
        present = np.flatnonzero(counts)
        several = counts.ravel()[present]
        stops = np.cumsum(several)
        firsts = (drawn - counts).ravel()[present] - (stops - several)
        ends = np.cumsum(counts.sum(axis=1)).tolist()
        starts = [0, *ends[:-1]]
        orders = [order for part in parts for order in part.orders]
        order = np.concatenate([a + b for a, b in zip(orders, starts, strict=True)])
        domains = np.repeat(present % K, several)[order]
        numbers = (np.repeat(firsts, several) + np.arange(order.size))[order]
        taken = self._source.take(domains, numbers)
        fresh = taken.fresh
        if self._trained_before.any():
            fresh = fresh & ~self._trained_before[domains]
        shares = counts / size
        divisors = [each for part in parts for each in part.domain_shares]
        places = [held for part in parts for held in part.held]
        return [
            StepRows(
                step=steps.start + i,
                rows=taken.rows[start:stop],
                domains=domains[start:stop],
                fresh=fresh[start:stop],
                domain_shares=divisors[i],
                row_shares=shares[i],
                spent=self._spent(drawn[i] - counts[i]) if self.budget else None,
            ).with_held(riding[i], places[i])
            for i, (start, stop) in enumerate(zip(starts, ends, strict=True))
        ]

    def _counted(self, steps: range, size: int, held: list[int]) -> list[StepCounts]:
        """Count steps together; one after the other, up to the end, where rows may be used up."""
        if not self.budget:
            shares = [self.shares_at(step) for step in steps]
            return [self.schedule.count(steps, np.array(shares), size=size, held=held)]
        drawn, parts = self._drawn[steps.start], []
        for step, aside in zip(steps, held, strict=True):
            bounded = self.shares_at(step, held=aside)
            if bounded is None:
                break
            found = self.schedule.count([step], bounded[np.newaxis], size=size, held=[aside])
            self._found_ends(step, drawn + found.counts[0])
            if not self.budget.allows(drawn + found.counts[0]):
                break
            parts.append(found)
            self._drawn[step + 1] = drawn = drawn + found.counts[0]
        return parts

    def _spent(self, drawn: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which domains are used up, and say so once of each."""
        spent = self.budget.spent(drawn)
        if spent is not None and (self._told is None or (spent & ~self._told).any()):
            new = spent if self._told is None else spent & ~self._told
            self._told = spent
            _log.warning(
                "Used up, after max_epochs: %s. From here on the objective is that of the other "
                "domains, their importance scaled up to sum to one.",
                self.budget.listed(new),
            )
        return spent

    def state_dict(self) -> dict[str, Any]:
        """Return position and history as plain arrays and numbers."""
        return {
            **self.schedule.state_dict(),
            "drawn": self._drawn[self.completed],
            "trained_before": self._trained_before,
            "streams": self.streams.state(self.completed),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "plan") -> None:
        """Go back to a saved position; the mixture must be the saved one.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        K = len(self.mixture.domains)
        schedule, scheduled = copy(self.schedule), list(self.schedule.state_dict())
        fields = {
            **dict.fromkeys(scheduled, schema.anything),
            "drawn": schema.array(K, dtype=np.int64, minimum=0),
            "trained_before": schema.array(K, dtype=np.bool_),
            "streams": schema.text,
        }
        saved = schema.read(state, fields, name=name)
        schedule.load_state_dict({key: saved[key] for key in scheduled}, name=name)
        self.schedule = schedule
        self._drawn = {self.completed: saved["drawn"]}
        self._trained_before = saved["trained_before"]
        self.streams = self.streams.resumed(saved["streams"])
        self.end = self._told = None
