"""The log of a run in progress, if it has one: where it is written, and its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from adaptmix.monitoring._texts import Caution
from adaptmix.probe._coverage import Coverage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from adaptmix.monitoring._page import Page
    from adaptmix.monitoring._tensorboard import TensorBoardLog


class RunLog:
    """Writes what a run records of itself; nothing before it is opened.

    Args:
        names: of the domains.
        texts: returns the run's configuration and the warnings given so far.
    """

    def __init__(
        self,
        names: Sequence[str],
        texts: Callable[[], tuple[Mapping[str, Any], Sequence[Caution]]],
    ) -> None:
        self._names, self._texts = names, texts
        self._board: TensorBoardLog | None = None

    def open(self, target: str | PathLike[str] | SummaryWriter, *, step: int) -> None:
        """Write to a directory or a SummaryWriter from now on."""
        # TensorBoard is imported by those who log to it.
        from adaptmix.monitoring._tensorboard import TensorBoardLog

        self._board = TensorBoardLog(target, self._names, step=step)

    def restart(self, step: int) -> None:
        """Go on at ``step``: what was logged of later steps is void."""
        if self._board is not None:
            self._board.restart(step)

    def write_texts(self, step: int) -> None:
        """Write the configuration and the warnings that are new."""
        if self._board is not None:
            self._board.write_texts(step, *self._texts())

    def write_update(
        self, step: int, scalars: Callable[[], Mapping[str, float]], coverage: Coverage | None
    ) -> None:
        """Write the scalars of an update."""
        if self._board is not None:
            self.write_texts(step)
            self._board.write(step, scalars(), coverage=coverage)

    def write_evaluation(
        self, step: int, losses: Mapping[str, float], errors: Mapping[str, float] | None
    ) -> None:
        """Write held-out losses by domain name."""
        self.write_texts(step)
        if self._board is not None:
            self._board.write_evaluation(step, losses, errors)

    @property
    def opened(self) -> bool:
        """Whether there is a log."""
        return self._board is not None

    def page(self, step: int) -> Page:
        """Return the page of what was logged so far.

        Raises:
            ValueError: nothing is logged.
            ImportError: the extra "report" is not installed.
        """
        if self._board is None or not self._board.folder:
            raise ValueError(
                "report(html=...) must have a record to read; call controller.log_to(directory) "
                "before training. Runs that a trainer's logger wrote are read by `adaptmix report`."
            )
        from adaptmix.monitoring import page, read_runs  # training needs neither

        self.write_texts(step)
        self._board.flush()
        return page(read_runs([self._board.folder]))
