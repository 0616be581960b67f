"""Whole numbers of samples per domain: the exact integer optimum of Neyman allocation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptmix._checks import FloatArray, integer, vector
from adaptmix.solvers._waterfill import water_fill

IntArray = NDArray[np.int64]

# Beyond this a float64 level no longer tells neighbouring counts apart.
_LARGEST_TOTAL = 2**46
# Stands for b(b + 1) = 0, so that first units outrank all others and still compare by scale.
_FIRST_UNIT = 1e-200


def neyman_counts(
    scale: ArrayLike, total: int, *, minimum: ArrayLike = 1, maximum: ArrayLike | None = None
) -> IntArray:
    """Minimise Σ a_i² / b_i over whole numbers b that sum to ``total``, exactly.

    The optimum hands out one unit at a time to the domain with the largest a_i / √(b_i (b_i + 1)),
    the lowest index among equals. Here its result is found in O(K log K), whatever the total.

    a² / 0 is infinite, so with ``minimum=0`` every domain with a > 0 wants one unit before any
    wants two, the largest a first. Domains with a = 0 come last and share what is left evenly.

    Args:
        scale: (K,) non-negative a_i = π_i w_i v_i, in units of a gradient; only ratios matter.
        total: samples to hand out, at most 2**46.
        minimum: integer or (K,) integers, fewest samples.
        maximum: integer or (K,) integers, most samples; no limit when None.

    Returns:
        (K,) int64 counts that sum to ``total``.

    Raises:
        TypeError: a total or bound that is not an integer.
        ValueError: negative or non-finite scale, or bounds that no counts meet.

    Source:
        Wright, Exact optimal sample allocation: More efficient than Neyman, Statistics &
        Probability Letters 129 (2017).

    Example:
        >>> neyman_counts([5.0, 2.0, 1.0], 10)
        array([6, 3, 1])
    """
    a, low, high = _program(scale, total, minimum, maximum)
    positive = a > 0.0
    if positive.all():
        return _largest_units(a, low, high, total)
    room = total - int(low[~positive].sum())
    first = int(min(room, high[positive].sum(dtype=np.float64)))
    counts = np.empty_like(low)
    if positive.any():
        counts[positive] = _largest_units(a[positive], low[positive], high[positive], first)
    same = np.ones(int((~positive).sum()))
    counts[~positive] = _largest_units(same, low[~positive], high[~positive], total - first)
    return counts


def _largest_units(a: FloatArray, low: IntArray, high: IntArray, total: int) -> IntArray:
    """Return the counts of the greedy rule for positive scales.

    Unit number b + 1 of domain i has priority a_i / √(b (b + 1)), which falls with b: the optimum
    is the ``total`` − Σ low units of largest priority. For a level τ let x_i = clip(τ a_i, low_i,
    high_i) and T(τ) be the units with priority > 1/τ. Since b < √(b (b + 1)) < b + 1,

        floor(x_i) ≤ T_i(τ) ≤ ceil(x_i),   so   Σ x − K < Σ T(τ) < Σ x + K.

    With Σ x = total − K, T lies inside the optimum, and so does floor(x). With Σ x = total + K the
    optimum lies inside T, and so inside ceil(x). At most 4K units are left to compare. Rounding
    is harmless: √(b (b + 1)) is almost half a unit away from the whole numbers around it, and
    both sums are integers with strict inequalities.
    """
    size = a.size
    lo, hi = low.astype(np.float64), high.astype(np.float64)
    below = water_fill(a, lo, hi, total=max(total - size, lo.sum()))
    above = water_fill(a, lo, hi, total=min(total + size, hi.sum()))
    counts = np.floor(below).astype(np.int64)
    window = np.ceil(above).astype(np.int64) - counts
    missing = total - int(counts.sum())
    if missing == 0:
        return counts
    domain = np.repeat(np.arange(size), window)
    before = np.cumsum(window) - window
    unit = counts[domain] + np.arange(domain.size) - before[domain]
    priority = _priority(a[domain], unit)
    cutoff = np.partition(priority, domain.size - missing)[domain.size - missing]
    chosen = priority > cutoff
    # Units are listed by domain, so the first of the equal ones have the lowest index.
    ties = np.flatnonzero(priority == cutoff)[: missing - int(chosen.sum())]
    chosen[ties] = True
    return counts + np.bincount(domain[chosen], minlength=size)


def _priority(a: FloatArray, unit: IntArray) -> FloatArray:
    """Return a² / (b (b + 1)): the greedy order, and exact ties for whole-number scales."""
    b = unit.astype(np.float64)
    return a * a / np.maximum(b * (b + 1.0), _FIRST_UNIT)


def _program(
    scale: ArrayLike, total: int, minimum: ArrayLike, maximum: ArrayLike | None
) -> tuple[FloatArray, IntArray, IntArray]:
    """Check the arguments; return scales of order one (by an exact power of two) and bounds."""
    a = vector("scale", scale, minimum=0.0)
    if integer("total", total, minimum=0) > _LARGEST_TOTAL:
        raise ValueError(f"total must be at most 2**46; got {total}. Use neyman_shares instead.")
    low = _integers("minimum", minimum, a.size)
    high = np.full(a.size, total) if maximum is None else _integers("maximum", maximum, a.size)
    if (low > high).any() and maximum is not None:
        i = int((low > high).argmax())
        raise ValueError(f"minimum must not exceed maximum; got {low[i]} > {high[i]} at {i}.")
    if low.sum() > total:
        raise ValueError(
            f"minimum must add up to at most total ({total}) over the domains; got {low.sum()} "
            f"with K={a.size}. Use minimum=0, or a larger total."
        )
    high = np.minimum(high, total)
    if high.sum(dtype=np.float64) < total:
        raise ValueError(
            f"maximum must add up to at least total ({total}) over the domains; got {high.sum()} "
            f"with K={a.size}. Raise it, or hand out fewer."
        )
    return np.ldexp(a, -int(np.frexp(a.max())[1])), low, high


def _integers(name: str, value: Any, size: int) -> IntArray:
    if np.ndim(value) == 0:
        return np.full(size, integer(name, value, minimum=0))
    numbers = vector(name, value, size=size, minimum=0.0)
    if (numbers != np.floor(numbers)).any():
        i = int((numbers != np.floor(numbers)).argmax())
        raise TypeError(f"{name} must be integers; got {numbers[i]:g} at {i}.")
    return numbers.astype(np.int64)
