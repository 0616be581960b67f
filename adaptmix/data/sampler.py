"""The plan as a batch sampler: which rows this process trains on, micro-batch by micro-batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, Sampler

from adaptmix.checks import integer
from adaptmix.data.draw import Draw
from adaptmix.data.mixture import Mixture
from adaptmix.data.plan import Plan, StepRows
from adaptmix.errors import LagError, LengthGroupingWarning

# Enough for eight workers with two batches each.
DEFAULT_LAG = 16


@dataclass(frozen=True)
class Layout:
    """How a step's global batch is cut into micro-batches of processes.

    Args:
        batch_size: rows of a micro-batch on one process.
        accumulation: micro-batches of an optimizer step.
        rank: this process, in [0, world_size).
        world_size: number of processes.
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size, minimum=1)
        integer("accumulation", self.accumulation, minimum=1)

    @property
    def process_rows(self) -> int:
        """Rows of a step on one process."""
        return self.batch_size * self.accumulation

    @property
    def step_rows(self) -> int:
        """Rows of a step on all processes."""
        return self.process_rows * self.world_size

    def steps_ahead(self, num_workers: int, prefetch_factor: int) -> int:
        """Return how many steps a loader draws beyond the one that is trained.

        Workers hold ``num_workers * prefetch_factor`` micro-batches beyond the one handed out, and
        a trainer may ask for all micro-batches of a step before it trains the first.
        """
        return (self.accumulation - 1 + num_workers * prefetch_factor) // self.accumulation

    def default_lag(self, num_workers: int, prefetch_factor: int) -> int:
        """Return a lag that covers such a loader, and is no less than the usual one."""
        return max(DEFAULT_LAG, self.steps_ahead(num_workers, prefetch_factor))

    def check_lag(self, lag: int, *, num_workers: int, prefetch_factor: int) -> None:
        """Refuse a loader that draws further ahead than shares are known.

        Raises:
            LagError: it does.
        """
        ahead = self.steps_ahead(num_workers, prefetch_factor)
        if ahead > lag:
            raise LagError(
                f"lag must be at least {ahead} with num_workers={num_workers}, prefetch_factor="
                f"{prefetch_factor} and accumulation={self.accumulation}; got {lag}. "
                f"Use lag={ahead}, or fewer workers."
            )


class DrawnRows(list[int]):
    """Rows of one micro-batch that know its number, also in a worker process."""

    def __init__(self, rows: Sequence[int], ordinal: int) -> None:
        super().__init__(rows)
        self.ordinal = ordinal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self), self.ordinal)


class PlanSampler(Sampler[list[int]]):
    """Yields this process's rows of each micro-batch, and keeps their draws until they are taken.

    Every iteration starts at the next step to train, so that it needs no state of its own. A
    trainer that iterates a loader once per epoch gets ``epoch_steps`` steps each time, all of them
    of full size, however many rows the dataset has.

    Args:
        plan: draws the rows.
        layout: how a global batch is cut.
        steps: optimizer steps of the whole run.
        epoch_steps: optimizer steps of one iteration; what is left of ``steps`` when None.
    """

    def __init__(
        self, plan: Plan, layout: Layout, *, steps: int, epoch_steps: int | None = None
    ) -> None:
        self.plan = plan
        self.layout = layout
        self.steps = integer("steps", steps, minimum=1)
        self.epoch_steps = epoch_steps
        self._draws: dict[int, Draw] = {}
        self._skipped_steps = 0
        self._row_lengths: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        left = self.steps - self.plan.completed
        steps = left if self.epoch_steps is None else self.epoch_steps
        return max(0, steps) * self.layout.accumulation

    def expect_skip(self, steps: int) -> None:
        """Let the next iteration begin with empty batches, for a trainer that skips trained ones.

        Args:
            steps: optimizer steps whose micro-batches the trainer is going to throw away.
        """
        self._skipped_steps = steps

    def group_by_length(self, row_lengths: ArrayLike) -> None:
        """Put rows of similar length into the same micro-batch, so that less has to be padded.

        A step's rows are cut into micro-batches from the longest to the shortest, and the processes
        of a micro-batch get neighbours. Which rows a step has does not change, and neither do its
        gradient and its statistics, for these are sums over the step.

        Args:
            row_lengths: (rows of the mixture,) length of each row.

        Raises:
            ValueError: another number of lengths than rows.

        Warns:
            LengthGroupingWarning: a step has only one micro-batch.
        """
        lengths = np.asarray(row_lengths, dtype=np.int64)
        if lengths.shape != (len(self.plan.mixture),):
            raise ValueError(
                f"row_lengths must have one entry per row of the mixture ({len(self.plan.mixture)})"
                f"; got shape {lengths.shape}."
            )
        if self.layout.step_rows == self.layout.batch_size:
            warnings.warn(
                "Rows are grouped by length within a step, and a step has only one micro-batch, so "
                "nothing changes. Use smaller batches and more accumulation: half the batch size "
                "with twice the accumulation trains on the same rows.",
                LengthGroupingWarning,
                stacklevel=2,
            )
        self._row_lengths = lengths

    def take(self, ordinal: int) -> Draw:
        """Return the draw of a micro-batch, once.

        Raises:
            ValueError: it was not drawn by this iteration, or was taken before.
        """
        if ordinal not in self._draws:
            raise ValueError(
                f"Micro-batch {ordinal} must be trained once, and in the iteration that drew it; "
                f"got it when {len(self._draws)} others were waiting. Start the loader anew after "
                "leaving it early."
            )
        return self._draws.pop(ordinal)

    def __iter__(self) -> Iterator[list[int]]:
        accumulation, start = self.layout.accumulation, self.plan.completed
        skipped, self._skipped_steps = self._skipped_steps, 0
        for _ in range(skipped * accumulation):
            yield []
        stop = self.steps if self.epoch_steps is None else start + self.epoch_steps - skipped
        self._draws.clear()
        for drawn in self.plan.steps(start, stop, size=self.layout.step_rows):
            if self._row_lengths is not None:
                # Stable, so that rows of one length stay in the order they were drawn in.
                longest_first = np.argsort(-self._row_lengths[drawn.rows], kind="stable")
                drawn = drawn.in_order(longest_first)
            for micro in range(accumulation):
                draw = self._slice(drawn, micro)
                self._draws[draw.ordinal] = draw
                yield DrawnRows(draw.rows.tolist(), draw.ordinal)

    def _slice(self, drawn: StepRows, micro: int) -> Draw:
        layout = self.layout
        start = (micro * layout.world_size + layout.rank) * layout.batch_size
        mine = slice(start, start + layout.batch_size)
        return Draw.build(
            domains=drawn.domains[mine].copy(),
            rows=drawn.rows[mine].copy(),
            fresh=drawn.fresh[mine].copy(),
            domain_shares=drawn.domain_shares,
            row_shares=drawn.row_shares,
            ordinal=drawn.step * layout.accumulation + micro,
            step=drawn.step,
            plan=self.plan,
        )


class NumberedRows(Dataset[Any]):
    """A mixture whose batches carry their micro-batch's number, whatever loader fetches them.

    Args:
        mixture: the rows.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, row: int) -> Any:
        return self.mixture[row]

    def __getitems__(self, rows: DrawnRows) -> tuple[list[Any], int]:
        """Return the rows' items and the number of the micro-batch."""
        return self.mixture.__getitems__(rows), rows.ordinal
