"""Warnings that a run gives once of each kind."""

from __future__ import annotations

import warnings

from adaptmix.errors import AdaptMixWarning


class WarnOnce:
    """Emits each kind of warning once in a run, also when the run is stopped and resumed.

    Attributes:
        given: names of the kinds that were given.
        messages: (kind, message) of those given since the run began or was resumed, in order.
    """

    def __init__(self) -> None:
        self.given: set[str] = set()
        self.messages: list[tuple[str, str]] = []

    def __call__(self, kind: type[AdaptMixWarning], message: str) -> None:
        """Warn, unless this kind was given before."""
        if kind.__name__ not in self.given:
            self.given.add(kind.__name__)
            self.messages.append((kind.__name__, message))
            warnings.warn(message, kind, stacklevel=4)
