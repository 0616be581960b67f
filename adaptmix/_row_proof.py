"""What is proved of the rows of a training loop: they keep their order, and have own losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adaptmix.data import Draw, Segments
from adaptmix.data._order_proof import tensors_of
from adaptmix.data._segments import sample_numbers
from adaptmix.probe._entry import Entry
from adaptmix.probe._row_losses import RowLosses
from adaptmix.statistics import Measurements


def now_and_then(number: int) -> bool:
    """Return whether something is looked at again at a count: at 1, 4, 16, 64 and so on."""
    return number & (number - 1) == 0 and number.bit_length() % 2 == 1


class RowProof:
    """Looks at the rows of the first batch, and at losses now and then.

    Losses are looked at again later (``now_and_then``), for a loss may begin in mid-run to compare
    rows. Nothing is looked at without a watched model.

    Args:
        measurements: of the run.
        adapting: whether rows are weighted.
    """

    def __init__(self, measurements: Measurements, *, adapting: bool) -> None:
        self._measurements = measurements
        self._number = 0 if adapting else -1
        self._entry: Entry | None = None
        self._losses: RowLosses | None = None

    def look(self, batch: Any, draw: Draw) -> None:
        """Watch what the loop does with a batch, before it gets it.

        Args:
            batch: in any structure.
            draw: of it.
        """
        probe = self._measurements.probe
        if self._number < 0 or probe is None or self._losses is not None:
            return
        if self._number == 0:
            self._entry = Entry(probe.model)
            self._entry.compare(list(tensors_of(batch)), len(draw))
        if now_and_then(self._number + 1):
            self._losses = RowLosses(probe.model)

    def check(self, losses: Tensor, segments: Segments | None, samples: Tensor | None) -> None:
        """Check the losses of a micro-batch, after its forward pass.

        Args:
            losses: as ``Controller.loss`` is given them.
            segments: likewise.
            samples: likewise.

        Raises:
            ObjectiveError: rows came in another order than the batch's, or their losses depend on
                the outputs for other rows.
        """
        probe = self._measurements.probe
        if self._number < 0 or probe is None:
            return self.close()
        self._number += 1
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.close()
            entry.check("The training loop")
        watched, self._losses = self._losses, None
        if watched is not None:
            own = None if samples is None else sample_numbers(samples, len(losses))
            watched.check(losses, segments, own, probe.aside)
        return None

    def close(self) -> None:
        """Take all hooks off, as where a loop uses no losses."""
        for watching in (self._entry, self._losses):
            if watching is not None:
                watching.close()
        self._entry = self._losses = None
