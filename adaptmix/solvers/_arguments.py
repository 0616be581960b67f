"""Arguments that several solvers take, and their checks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, number, vector

# Bounds such as 1/K need not add up to exactly one in float64.
_ROUNDING = 1e-12


def share_bounds(
    lower: ArrayLike, upper: ArrayLike, num_domains: int
) -> tuple[FloatArray, FloatArray]:
    """Return both bounds as (K,) vectors, once they leave room for shares that add up to one.

    Args:
        lower: scalar or (K,), smallest share.
        upper: scalar or (K,), largest share.
        num_domains: K.

    Raises:
        ValueError: bounds outside [0, 1], crossing, or met by no shares that add up to one.
    """
    lo, least = _bound("lower", lower, num_domains)
    hi, most = _bound("upper", upper, num_domains)
    if (crossing := lo > hi).any():
        i = int(crossing.argmax())
        raise ValueError(f"lower must not exceed upper; got {lo[i]:g} > {hi[i]:g} at {i}.")
    if least > 1.0 + _ROUNDING:
        raise ValueError(
            f"lower must add up to at most 1 over the domains; got {least:g} with "
            f"K={num_domains}. Lower it: 1/K is the most that all can have."
        )
    if most < 1.0 - _ROUNDING:
        raise ValueError(
            f"upper must add up to at least 1 over the domains; got {most:g} with "
            f"K={num_domains}. Raise it: 1/K is the least that all can have."
        )
    return lo, hi


def pair_of_bounds(
    name: str, pair: tuple[ArrayLike, ArrayLike], size: int
) -> tuple[FloatArray, FloatArray]:
    """Return a pair of bounds as (K,) vectors, checked under the name of the argument it was.

    Raises:
        TypeError: not a pair.
        ValueError: as ``share_bounds``.
    """
    try:
        lower, upper = pair
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a pair (lower, upper); got {pair!r}.") from error
    try:
        return share_bounds(lower, upper, size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def number_of_draws(draws: float) -> float:
    """Return ``draws`` as a float, once it is positive. It may be infinite."""
    return draws if draws == math.inf else number("draws", draws, minimum=0.0, strict=True)


def _bound(name: str, value: ArrayLike, num_domains: int) -> tuple[FloatArray, float]:
    """Return the bound of every domain, and their sum."""
    if isinstance(value, float) or np.ndim(value) == 0:
        every = number(name, value, minimum=0.0, maximum=1.0)
        bound = np.empty(num_domains)
        bound.fill(every)
        return bound, num_domains * every
    bound = vector(name, value, size=num_domains, minimum=0.0)
    if bound.max() > 1.0:
        raise ValueError(f"{name} must be in [0, 1]; got {bound.max():g} at {bound.argmax()}.")
    return bound, float(bound.sum())
