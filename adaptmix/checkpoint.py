"""State as plain tensors, numbers and strings, and files that are never half written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptmix.errors import StateError

SCHEMA = 1
_ARRAY = "__array__"
_TUPLE = "__tuple__"


def encode(state: Any) -> Any:
    """Return ``state`` with NumPy arrays as tensors, so that ``weights_only`` loading takes it.

    Args:
        state: numbers, strings, None, arrays, tensors, and dicts, lists and tuples of them.

    Raises:
        TypeError: anything else.
    """
    if isinstance(state, np.generic):  # before float and str, which two of them are
        return state.item()
    if state is None or isinstance(state, (bool, int, float, str, Tensor)):
        return state
    if isinstance(state, np.ndarray):
        return {_ARRAY: torch.from_numpy(state.copy())}
    if isinstance(state, Mapping):
        return {key: encode(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return {_TUPLE: [encode(value) for value in state]}
    if isinstance(state, list):
        return [encode(value) for value in state]
    raise TypeError(
        "state must be made of numbers, strings, None, arrays, tensors, dicts, lists and tuples; "
        f"got {type(state).__name__}."
    )


def decode(state: Any) -> Any:
    """Undo ``encode``."""
    if isinstance(state, Mapping):
        if set(state) == {_ARRAY}:
            return state[_ARRAY].numpy().copy()
        if set(state) == {_TUPLE}:
            return tuple(decode(value) for value in state[_TUPLE])
        return {key: decode(value) for key, value in state.items()}
    if isinstance(state, list):
        return [decode(value) for value in state]
    return state


def expect(state: Mapping[str, Any], **values: Any) -> None:
    """Check that a saved state belongs to what now loads it.

    Raises:
        StateError: a key is missing, or its value is not the one given here.
    """
    for name, value in values.items():
        if name not in state:
            raise StateError(f"state must hold {name!r}; it has {', '.join(map(str, state))}.")
        if state[name] != value:
            raise StateError(
                f"{name} must be what the saved run had: {state[name]!r}; got {value!r}. "
                "Build the controller as it was built then."
            )


@contextmanager
def damage() -> Iterator[None]:
    """Turn what a damaged state provokes while it is taken over into a StateError."""
    try:
        yield
    except StateError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise StateError(
            f"state must be what state_dict() returned; it is damaged: {error}. "
            "Use an older checkpoint."
        ) from error


def save(state: Any, path: str | os.PathLike[str]) -> None:
    """Write a state so that ``path`` holds either all of it or what it held before.

    Args:
        state: what a ``state_dict()`` returned.
        path: file to replace.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> Any:
    """Read what ``save`` wrote, running no code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)
