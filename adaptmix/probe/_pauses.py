"""When passes run that are not the model's own, of which nothing is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Pauses:
    """What is not looked at for a while.

    Attributes:
        steps: operations, and gradients of parameters: they are no part of a step.
        layers: gradients at layers.
    """

    def __init__(self) -> None:
        self.steps = self.layers = False

    @contextmanager
    def proof(self) -> Iterator[None]:
        """Read gradients at layers of passes that are no part of a step."""
        self.steps = True
        try:
            yield
        finally:
            self.steps = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Differentiate something else for a while, of which nothing is measured."""
        self.steps = self.layers = True
        try:
            yield
        finally:
            self.steps = self.layers = False
