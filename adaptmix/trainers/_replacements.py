"""Functions in the place of an object's methods for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Replacements:
    """Puts functions in the place of an object's methods, and gives the methods back.

    Args:
        owner: whose methods they are; its class is not touched.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._own: dict[str, Callable[..., Any]] = {}
        self._before: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The owner's own method, also while another function is in its place."""
        own = self._own.get(name)
        return getattr(self._owner, name) if own is None else own

    def replace(self, name: str, function: Callable[..., Any]) -> None:
        """Put a function in the place of a method.

        Raises:
            ValueError: the method was replaced before, and not given back.
        """
        if name in self._own:
            raise ValueError(f"name must be of a method that is not replaced yet; got {name!r}.")
        self._own[name] = getattr(self._owner, name)
        if name in vars(self._owner):
            self._before[name] = vars(self._owner)[name]
        setattr(self._owner, name, function)

    def restore(self) -> None:
        """Give all methods back; a second call does nothing."""
        for name in self._own:
            if name in self._before:
                setattr(self._owner, name, self._before[name])
            else:
                delattr(self._owner, name)
        self._own, self._before = {}, {}
