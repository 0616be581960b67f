"""What one process refuses stops all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adaptmix.controller import Controller
from adaptmix.errors import MissingStatisticError, ObjectiveError
from adaptmix.processes._sums import gather, world


class Refusals:
    """Keeps what this process refuses until all processes have heard of it.

    A process that raises alone leaves the others waiting in the backward pass. So where losses are
    proved, which is in the same steps on all of them, it goes on to the end of the step, and they
    stop together before the optimizer's step. In the other steps, and where there is one process,
    it raises at once.

    Args:
        controller: of the run.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._refused: Exception | None = None
        self._first = True  # or the step after a measured one, which may be rehearsed

    @property
    def refused(self) -> bool:
        """Whether something is, in this step."""
        return self._refused is not None

    @property
    def _shared(self) -> bool:
        several = world()[1] > 1
        return several and (self._first or self._controller.observing)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is refused inside, or raise it where nobody waits."""
        try:
            yield
        except (ObjectiveError, MissingStatisticError) as error:
            if not self._shared:
                raise
            self._refused = self._refused or error

    def settle(self) -> None:
        """Before the optimizer's step, stop if any process refuses something.

        Raises:
            ObjectiveError: one does.
            MissingStatisticError: this one does, for that reason.
        """
        shared, self._first = self._shared, self._controller.observing
        if not shared:
            return
        told = gather(None if self._refused is None else str(self._refused))
        if self._refused is not None:
            raise self._refused
        for rank, trouble in enumerate(told):
            if trouble is not None:
                raise ObjectiveError(f"Rank {rank} cannot go on: {trouble}")
