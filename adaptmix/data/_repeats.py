"""Rows that several optimizer steps train on, as where completions are generated once for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adaptmix.data._step_rows import StepRows
from adaptmix.errors import ObjectiveError


class Repeats:
    """Says which steps train the rows of earlier ones again, and keeps those rows.

    After every ``steps`` steps with rows of their own, the same rows are trained ``times`` − 1
    times more, in the same order.

    Args:
        steps: whose rows are trained again together.
        times: how often they are trained in all.
    """

    def __init__(self, steps: int = 1, times: int = 1) -> None:
        self._steps, self._times = steps, times
        self._kept: dict[int, StepRows] = {}

    def __bool__(self) -> bool:
        return self._times > 1

    def check(self, *, streamed: bool) -> None:
        """Check that rows can be trained again.

        Raises:
            ObjectiveError: they are of streams.
        """
        if self and streamed:
            raise ObjectiveError(
                "Rows of streams are given once, and here several steps train on the same rows. "
                "Take the prompts from datasets that are not streamed."
            )

    def left(self, step: int, most: int) -> int:
        """Return how many steps from ``step`` on, ``most`` at most, have rows of their own."""
        return most if not self else min(most, self._steps - step % self._steps)

    def keep(self, drawn: Sequence[StepRows]) -> None:
        """Keep the rows of steps until those after their last repetition are drawn."""
        if self:
            for rows in drawn:
                if rows.step % (self._steps * self._times) == 0:
                    self._kept.clear()
                self._kept[rows.step] = rows

    def again(self, step: int) -> StepRows | None:
        """Return the rows that a step trains on again; None where it has rows of its own."""
        begin = step - step % (self._steps * self._times)
        first = begin + (step - begin) % self._steps
        if first == step:
            return None
        rows = self._kept[first]
        return replace(rows, step=step, fresh=np.zeros_like(rows.fresh))
