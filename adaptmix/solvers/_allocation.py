"""Neyman allocation: the shares of a batch that minimise its gradient's variance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, number, vector
from adaptmix.solvers._arguments import share_bounds
from adaptmix.solvers._waterfill import water_fill

# A scale that is smaller, relative to the largest, is worth nothing: its inverse may overflow.
_NOTHING = 1e-200


def neyman_shares(
    scale: ArrayLike,
    *,
    uncentred: ArrayLike | None = None,
    rows: float | None = None,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
    cost: ArrayLike | None = None,
) -> FloatArray:
    """Minimise Σ a_i² v_i² / (c_i p_i) over shares p within bounds.

    The minimiser is p_i = clip(τ · a_i v_i / √c_i, lower_i, upper_i) with τ such that Σ p = 1.
    Without cost it minimises the gradient's variance at a fixed number of samples. With cost, and
    as long as no bound binds, it minimises variance times cost, that is, the variance at a fixed
    expense.

    ``rows`` and ``uncentred`` take in that counts are whole. A domain with b = rows · p < 1 is
    present or absent, and its mean gradient μ comes and goes with it: its part of the variance is
    a² (s² / b − ‖μ‖²) with s² = v² + ‖μ‖², and a² v² / b from b = 1 on. The slope jumps up at
    b = 1, so that the minimiser has a kink there:

        b_i = clip(max(τ a_i v_i, min(τ a_i s_i, 1)), rows · lower_i, rows · upper_i).

    A domain with a = 0 keeps its lower bound until all others are at their upper one. When every
    a is 0, all shares are equally good and the ones nearest to uniform are returned.

    Args:
        scale: (K,) non-negative a_i v_i = π_i w_i v_i, in units of a gradient; only ratios matter.
        uncentred: (K,) a_i s_i ≥ a_i v_i, in the units of ``scale``; the scale when None.
        rows: rows of a step's global batch, > 0; so many when None that every count is large.
        lower: scalar or (K,), smallest share.
        upper: scalar or (K,), largest share.
        cost: (K,) positive cost c_i of one sample (tokens, seconds); equal when None.

    Returns:
        (K,) shares that sum to one.

    Raises:
        ValueError: negative or non-finite scale, ``uncentred`` below it or without ``rows``, cost
            that is not positive, or bounds that no shares meet.

    Source:
        Neyman (1934); Salmani et al., arXiv:2511.06913, algorithm VA. Bounds: water-filling. Small
        counts are ours.

    Example:
        >>> neyman_shares([8.0, 1.0, 1.0], upper=0.5)
        array([0.5 , 0.25, 0.25])
        >>> neyman_shares([8.0, 1.0, 1.0], uncentred=[8.0, 3.0, 3.0], rows=5)
        array([0.6, 0.2, 0.2])
    """
    rate, absent, number_of_rows, lo, hi = _program(scale, uncentred, rows, lower, upper, cost)
    return _fill(rate, absent, number_of_rows, lo, hi)


def _fill(
    rate: FloatArray,
    absent: FloatArray,
    rows: float | None,
    lower: FloatArray,
    upper: FloatArray,
) -> FloatArray:
    """Return the minimiser for rates a v / √c and a s / √c.

    A domain's rows are those up to one, which answer to s, and those beyond it, which answer to v:
    max(τ v, min(τ s, 1)) = min(τ s, 1) + (τ v − 1)₊. So one water-filling over both parts of every
    domain is exact.
    """
    if rows is None or not absent.any() or np.array_equal(rate, absent):
        return water_fill(rate, lower, upper)
    slope = np.concatenate((absent, np.where(rate > _NOTHING, rate, 0.0)))
    threshold = np.zeros_like(slope)
    beyond = threshold[rate.size :]
    np.divide(1.0, rate, out=beyond, where=rate > _NOTHING)
    low, high = _parts(rows * lower), _parts(rows * upper)
    filled = water_fill(slope, low, high, threshold=threshold, total=rows)
    shares = filled.reshape(2, -1).sum(axis=0) / rows
    # Division may round a share off its bound.
    for bound, ends in ((lower, low), (upper, high)):
        np.copyto(shares, bound, where=(filled == ends).reshape(2, -1).all(axis=0))
    clipped: FloatArray = np.minimum(np.maximum(shares, lower), upper)
    return clipped


def _parts(rows: FloatArray) -> FloatArray:
    """Return (2K,) the rows up to one of each domain, and those beyond it."""
    return np.concatenate((np.minimum(rows, 1.0), np.maximum(rows - 1.0, 0.0)))


def _program(
    scale: ArrayLike,
    uncentred: ArrayLike | None,
    rows: float | None,
    lower: ArrayLike,
    upper: ArrayLike,
    cost: ArrayLike | None,
) -> tuple[FloatArray, FloatArray, float | None, FloatArray, FloatArray]:
    """Check the arguments; return a v / √c and a s / √c, both relative, rows and bounds."""
    rate = absent = vector("scale", scale, minimum=0.0)
    lo, hi = share_bounds(lower, upper, rate.size)
    if rows is not None:
        rows = number("rows", rows, minimum=0.0, strict=True)
    if uncentred is not None:
        if rows is None:
            raise ValueError("rows must be given with uncentred; got None. Pass the batch size.")
        absent = vector("uncentred", uncentred, size=rate.size, minimum=0.0)
        if (below := absent < rate).any():
            i = int(below.argmax())
            raise ValueError(
                f"uncentred must be at least scale; got {absent[i]:g} < {rate[i]:g} at {i}. A "
                "second moment is the variance and the squared mean."
            )
    rate, absent = _relative(rate, absent)
    if cost is not None:
        price = vector("cost", cost, size=rate.size, minimum=0.0, strict=True)
        root = np.sqrt(price / price.min())
        rate, absent = rate / root, absent / root
    return rate, absent, rows, lo, hi


def _relative(scale: FloatArray, uncentred: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return both relative to the largest, and so of order one."""
    peak = uncentred.max()
    if not peak > 0.0:
        return scale, uncentred
    relative = scale / peak
    return relative, relative if scale is uncentred else uncentred / peak
