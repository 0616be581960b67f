"""Argument checks whose messages name the parameter, the rule, the value and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def vector(
    name: str,
    value: ArrayLike,
    *,
    size: int | None = None,
    minimum: float | None = None,
    strict: bool = False,
    infinite: bool = False,
) -> FloatArray:
    """Return ``value`` as a new float64 vector after checking its shape and range.

    Args:
        name: the parameter's name, for the message.
        value: array-like of shape (K,).
        size: the length it must have; any when None.
        minimum: the smallest value allowed; none when None.
        strict: whether ``minimum`` itself is excluded.
        infinite: whether +inf is allowed.

    Raises:
        TypeError: it is not numeric.
        ValueError: wrong shape, NaN, infinite or too small.
    """
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "biuf" and given.size:
            raise TypeError(given.dtype)
        array = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be a vector of numbers; got {type(value).__name__}."
        ) from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must have shape (K,) with K >= 1; got shape {array.shape}.")
    if size is not None and array.size != size:
        raise ValueError(f"{name} must have one value per domain ({size}); got {array.size}.")
    least, most = np.minimum.reduce(array), np.maximum.reduce(array)  # NaN where there is one
    if not (least > -np.inf and (most < np.inf or (infinite and most == np.inf))):
        bad = np.isnan(array) | (np.isneginf(array) if infinite else np.isinf(array))
        raise ValueError(f"{name} must be finite; got {array[bad][0]} at {int(bad.argmax())}.")
    if minimum is not None and (least <= minimum if strict else least < minimum):
        low = array <= minimum if strict else array < minimum
        rule = f"> {minimum:g}" if strict else f">= {minimum:g}"
        raise ValueError(f"{name} must be {rule}; got {array[low][0]:g} at {int(low.argmax())}.")
    return array


def integer(name: str, value: Any, *, minimum: int) -> int:
    """Return ``value`` as an int that is at least ``minimum``.

    Raises:
        TypeError: it is not an integer (bool is not one).
        ValueError: it is smaller than ``minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer >= {minimum}; got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}; got {value}.")
    return int(value)


def number(
    name: str,
    value: Any,
    *,
    minimum: float = -np.inf,
    maximum: float = np.inf,
    strict: bool = False,
) -> float:
    """Return ``value`` as a finite float in [minimum, maximum], or in the open interval.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is NaN, infinite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}.")
    result = float(value)
    inside = minimum < result < maximum if strict else minimum <= result <= maximum
    if not (math.isfinite(result) and inside):
        left, right = ("(", ")") if strict else ("[", "]")
        raise ValueError(
            f"{name} must be finite and in {left}{minimum:g}, {maximum:g}{right}; got {value}."
        )
    return result


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """Return ``value`` when it is one of ``options``.

    Raises:
        ValueError: it is not.
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}; got {value!r}.")
    return str(value)


def lower_share(name: str, value: Any, num_domains: int) -> float:
    """Return a lower bound on every domain's share, which K domains can keep at once.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside [0, 1/K].
    """
    bound = number(name, value)
    if not 0.0 <= bound <= 1.0 / num_domains:
        raise ValueError(
            f"{name} must be in [0, 1/K]; got {bound:g} with K={num_domains}. "
            f"Choose at most {1.0 / num_domains:.6g}."
        )
    return bound
