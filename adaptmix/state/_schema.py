"""What a saved state must look like, field by field, declared where the field lives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from adaptmix.errors import StateError

Check = Callable[[str, Any], Any]
"""Takes a field's name and value, and returns the value or raises a StateError."""


def read(state: Any, fields: Mapping[str, Check], *, name: str = "") -> dict[str, Any]:
    """Return what a saved state holds, after checking every field of it.

    Args:
        state: a saved state.
        fields: the check of each field that it must have; it must have no other.
        name: of the state itself in a larger one.

    Raises:
        StateError: no mapping, a missing or an unknown field, or one that its check refuses.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"{name or 'state'} must map names to values; got {_kind(state)}.")
    inside = f" of {name}" if name else ""
    for field in fields:
        if field not in state:
            raise StateError(f"{_join(name, field)} must be in the state; it is missing.")
    unknown = [field for field in state if field not in fields]
    if unknown:
        raise StateError(f"{unknown[0]!r} must not be in the state{inside}: it is no field of it.")
    return {field: check(_join(name, field), state[field]) for field, check in fields.items()}


def record(fields: Mapping[str, Check]) -> Check:
    """Check a mapping that has exactly these fields."""
    return lambda name, value: read(value, fields, name=name)


def anything(_name: str, value: Any) -> Any:
    """Check nothing."""
    return value


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Check that it is a mapping, which is read further where it belongs."""
    if not isinstance(value, Mapping):
        raise StateError(f"{name} must map names to values; got {_kind(value)}.")
    return value


def flag(name: str, value: Any) -> bool:
    """Check a bool."""
    if not isinstance(value, bool):
        raise StateError(f"{name} must be True or False; got {_kind(value)}.")
    return value


def text(name: str, value: Any) -> str:
    """Check a string."""
    if not isinstance(value, str):
        raise StateError(f"{name} must be a string; got {_kind(value)}.")
    return value


def integer(minimum: int = 0, maximum: float = math.inf) -> Check:
    """Check an int in [minimum, maximum]."""

    def check(name: str, value: Any) -> int:
        if type(value) is not int or not minimum <= value <= maximum:
            raise StateError(
                f"{name} must be an integer in [{minimum}, {maximum:g}]; got {value!r}."
            )
        return value

    return check


def number(minimum: float = -math.inf) -> Check:
    """Check a finite float that is at least ``minimum``."""

    def check(name: str, value: Any) -> float:
        if type(value) is not float or not math.isfinite(value) or value < minimum:
            raise StateError(f"{name} must be a finite float >= {minimum:g}; got {value!r}.")
        return value

    return check


def array(
    *shape: int | None,
    dtype: DTypeLike = np.float64,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    unknown: float | None = None,
) -> Check:
    """Check an array, and return a copy of it.

    Args:
        shape: it must have; any length where None.
        dtype: it must have.
        minimum: the least value allowed.
        maximum: the largest value allowed; infinite ones never are.
        unknown: what stands for an entry that is not known, NaN or an infinity, and is allowed.
    """

    def check(name: str, value: Any) -> NDArray[Any]:
        if not isinstance(value, np.ndarray) or value.dtype != dtype:
            got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else _kind(value)
            raise StateError(f"{name} must be an array of {np.dtype(dtype)}; got {got}.")
        fits = value.ndim == len(shape) and all(
            size in (None, got) for size, got in zip(shape, value.shape, strict=True)
        )
        if not fits:
            raise StateError(f"{name} must have shape {shape}; got {value.shape}.")
        allowed = np.isfinite(value) & (value >= minimum) & (value <= maximum)
        if unknown is not None:
            allowed |= np.isnan(value) if math.isnan(unknown) else value == unknown
        if not allowed.all():
            raise StateError(
                f"{name} must be finite and in [{minimum:g}, {maximum:g}]; got "
                f"{value[~allowed][0]} in {int((~allowed).sum())} of {value.size} places."
            )
        return value.copy()

    return check


def maybe(check: Check) -> Check:
    """Check what may also be None."""
    return lambda name, value: None if value is None else check(name, value)


def several(check: Check) -> Check:
    """Check a list, item by item."""

    def check_all(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise StateError(f"{name} must be a list; got {_kind(value)}.")
        return [check(f"{name}[{i}]", item) for i, item in enumerate(value)]

    return check_all


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def _kind(value: Any) -> str:
    return type(value).__name__
