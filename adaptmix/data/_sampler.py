"""The plan as a batch sampler: which rows this process trains on, micro-batch by micro-batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from adaptmix._checks import integer
from adaptmix.data._collation import DrawnRows
from adaptmix.data._draw import Draw
from adaptmix.data._layout import Layout
from adaptmix.data._plan import Plan
from adaptmix.data._step_rows import StepRows
from adaptmix.errors import LengthGroupingWarning, ObjectiveError, RowOrderWarning
from adaptmix.state._identity import digest


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
        finish_epochs: whether an iteration that begins inside an epoch ends where the epoch does.
            Otherwise it has ``epoch_steps`` steps from wherever it begins, as trainers expect that
            count batches themselves.
        on_start: called when an iteration begins.

    Raises:
        ValueError: the run is longer than ``max_epochs`` allow.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        *,
        steps: int,
        epoch_steps: int | None = None,
        finish_epochs: bool = False,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        self.plan = plan
        self.layout = layout
        self.steps = integer("steps", steps, minimum=1)
        self.epoch_steps = epoch_steps
        self._finish_epochs = finish_epochs
        self._on_start = on_start
        self._draws: dict[int, Draw] = {}
        self._warned = False
        self._skipped_steps = 0
        self._row_lengths: NDArray[np.int64] | None = None
        plan.check(size=layout.step_rows, horizon=self.steps)

    def __len__(self) -> int:
        completed = self.plan.completed
        return max(0, self._end(completed) - completed) * self.layout.accumulation

    def _end(self, start: int) -> int:
        """Return the step before which an iteration ends that begins at step ``start``."""
        stop = self.steps
        if self.epoch_steps is not None:
            stop = start + self.epoch_steps
            if self._finish_epochs:
                stop = min(self.steps, (start // self.epoch_steps + 1) * self.epoch_steps)
        return stop if self.plan.end is None else min(stop, self.plan.end)

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same on every process, in plain values."""
        lengths = self._row_lengths
        return {
            "batch_size": self.layout.batch_size,
            "accumulation": self.layout.accumulation,
            "steps": self.steps,
            "epoch_steps": self.epoch_steps,
            "grouped_by_length": None if lengths is None else digest(lengths),
            "first_rows_of_stream": self.plan.streams.recognised,
        }

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
            row_lengths: (rows of the mixture,) length of each row, also of held-out ones.

        Raises:
            ValueError: another number of lengths than rows.

        Warns:
            LengthGroupingWarning: a step has only one micro-batch.
        """
        if self.plan.mixture.streams:
            raise ValueError(
                "Rows of streams must not be grouped by length: their lengths are not known before "
                "they are read. Train without grouping."
            )
        lengths, rows = np.asarray(row_lengths, dtype=np.int64), self.plan.mixture.stored
        if lengths.shape != (rows,):
            raise ValueError(
                f"row_lengths must have one entry per row of the mixture ({rows}); got shape "
                f"{lengths.shape}."
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

    def take(self, number: int) -> Draw:
        """Return the draw of a micro-batch, once.

        Args:
            number: of the micro-batch, as its batch carries it.

        Raises:
            ObjectiveError: its collator moved rows, or left some out.
            ValueError: it was not drawn by this iteration, or was taken before.

        Warns:
            RowOrderWarning: once, when it could not be shown that rows keep their order.
        """
        fault = getattr(number, "fault", None)
        if fault is not None:
            raise ObjectiveError(fault)
        if getattr(number, "unclear", False) and not self._warned:
            self._warned = True
            warnings.warn(
                "It could not be checked whether collate_fn keeps the order of rows. Each row of a "
                "batch is weighted as the row drawn in its place: make sure that collate_fn does "
                "not sort, shuffle or mix rows.",
                RowOrderWarning,
                stacklevel=3,
            )
        if number not in self._draws:
            raise ValueError(
                f"Micro-batch {int(number)} must be trained once, and in the iteration that drew "
                f"it; got it when {len(self._draws)} others were waiting. Start the loader anew "
                "after leaving it early."
            )
        draw, segments = self._draws.pop(number), getattr(number, "segments", None)
        return draw if segments is None else replace(draw, segments=segments)

    def __iter__(self) -> Iterator[list[int]]:
        if self._on_start is not None:
            self._on_start()
        accumulation, start = self.layout.accumulation, self.plan.completed
        skipped, self._skipped_steps = self._skipped_steps, 0
        for _ in range(skipped * accumulation):
            yield []
        stop = self._end(start) - (0 if self.epoch_steps is None else skipped)
        self._draws.clear()
        step_rows, layout = self.layout.step_rows, self.layout
        self.plan.begin_streams(start, (layout.rank, layout.world_size))
        of_process = np.arange(step_rows) // layout.batch_size % layout.world_size == layout.rank
        for drawn in self.plan.steps(start, stop, size=step_rows, horizon=self.steps):
            if self._row_lengths is not None:
                # Stable, so that rows of one length stay in the order they were drawn in.
                longest_first = np.argsort(-self._row_lengths[drawn.rows], kind="stable")
                drawn = drawn.in_order(longest_first)
            drawn, read = self.plan.streams.take(drawn, of_process)
            for micro in range(accumulation):
                part = micro * layout.world_size + layout.rank
                mine = range(part * layout.batch_size, (part + 1) * layout.batch_size)
                draw = self._slice(drawn, micro, slice(mine.start, mine.stop))
                self._draws[draw.ordinal] = draw
                yield DrawnRows(
                    draw.rows.tolist(),
                    draw.ordinal,
                    draw.ordinal * layout.world_size + layout.rank,
                    {place - mine.start: read.pop(place) for place in mine if place in read},
                )

    def _slice(self, drawn: StepRows, micro: int, mine: slice) -> Draw:
        layout = self.layout
        return Draw.build(
            domains=drawn.domains[mine].copy(),
            rows=drawn.rows[mine].copy(),
            fresh=drawn.fresh[mine].copy(),
            held=None if drawn.held is None else drawn.held[mine].copy(),
            domain_shares=drawn.domain_shares,
            row_shares=drawn.row_shares,
            ordinal=drawn.step * layout.accumulation + micro,
            step=drawn.step,
            layout=layout,
            plan=self.plan,
            spent=drawn.spent,
        )
