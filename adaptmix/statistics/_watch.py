"""The handle on an installed gradient probe."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from adaptmix.probe._coverage import Coverage
from adaptmix.statistics._measurements import Measurements


class Watch:
    """Handle on the gradient probe that ``Controller.watch`` installed; a context manager."""

    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements
        self._probe = measurements.probe

    @property
    def coverage(self) -> Coverage | None:
        """What the probe sees of the trainable parameters; None once it is removed."""
        return None if self._probe is None else self._measurements.coverage

    def aside(self) -> AbstractContextManager[None]:
        """Return a context in which a loss is differentiated and nothing is measured."""
        return nullcontext() if self._probe is None else self._probe.aside()

    def remove(self) -> None:
        """Take the probe's hooks off the model; a second call does nothing."""
        if self._probe is not None:
            self._probe.detach()
            self._measurements.probe = None
            self._probe = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()
