"""Neyman allocation: the shares of a batch that make its gradient as quiet as it can be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from adaptmix.checks import FloatArray, vector
from adaptmix.solvers.waterfill import share_bounds, trade_residual, water_fill


def neyman_shares(
    scale: ArrayLike,
    *,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
    cost: ArrayLike | None = None,
) -> FloatArray:
    """Minimise Σ a_i² / (c_i p_i) over shares p within bounds.

    The minimiser is p_i = clip(τ · a_i / √c_i, lower_i, upper_i) with τ such that Σ p = 1. Without
    cost it minimises the gradient's variance at a fixed number of samples. With cost, and as
    long as no bound binds, it minimises variance times cost, that is, the variance at a fixed
    expense.

    A domain with a = 0 keeps its lower bound until all others are at their upper one. When every
    a is 0, all shares are equally good and the ones nearest to uniform are returned.

    Args:
        scale: (K,) non-negative a_i = π_i w_i v_i, in units of a gradient; only ratios matter.
        lower: scalar or (K,), smallest share.
        upper: scalar or (K,), largest share.
        cost: (K,) positive cost c_i of one sample (tokens, seconds); equal when None.

    Returns:
        (K,) shares that sum to one.

    Raises:
        ValueError: negative or non-finite scale, cost that is not positive, or bounds that no
            shares meet.

    Source:
        Neyman (1934); Salmani et al., arXiv:2511.06913, algorithm VA. Bounds: water-filling.

    Example:
        >>> neyman_shares([8.0, 1.0, 1.0], upper=0.5)
        array([0.5 , 0.25, 0.25])
    """
    rate, lo, hi = _program(scale, lower, upper, cost)
    return water_fill(rate, lo, hi)


def allocate(scale: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Return ``neyman_shares`` of (K,) scales and bounds that are known to be in range."""
    return water_fill(_relative(scale), lower, upper)


def allocation_residual(
    scale: ArrayLike,
    shares: ArrayLike,
    *,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
    cost: ArrayLike | None = None,
) -> float:
    """Return how far shares are from the conditions that make them optimal; 0 when they are.

    At the optimum a_i / (√c_i p_i) is the same for all shares between their bounds, no smaller at
    an upper and no larger at a lower bound. The residual is relative: it does not change with
    the units of scale or cost.

    Args:
        scale: (K,) as in ``neyman_shares``.
        shares: (K,) shares to judge.
        lower: as in ``neyman_shares``.
        upper: as in ``neyman_shares``.
        cost: as in ``neyman_shares``.

    Returns:
        The relative gap between marginal values, or the excess over a constraint if larger.

    Raises:
        ValueError: as ``neyman_shares``, or shares that are negative or of another length.

    Example:
        >>> allocation_residual([8.0, 1.0, 1.0], [0.5, 0.25, 0.25], upper=0.5)
        0.0
    """
    rate, lo, hi = _program(scale, lower, upper, cost)
    p = vector("shares", shares, size=rate.size, minimum=0.0)
    never = np.where(rate > 0.0, np.inf, 0.0)
    return trade_residual(np.divide(rate, p, out=never, where=p > 0.0), p, lo, hi)


def _program(
    scale: ArrayLike, lower: ArrayLike, upper: ArrayLike, cost: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Check the arguments; return a / √c relative to the largest a and smallest c, and bounds."""
    rate = _relative(vector("scale", scale, minimum=0.0))
    lo, hi = share_bounds(lower, upper, rate.size)
    if cost is not None:
        price = vector("cost", cost, size=rate.size, minimum=0.0, strict=True)
        rate /= np.sqrt(price / price.min())
    return rate, lo, hi


def _relative(scale: FloatArray) -> FloatArray:
    """Return scales relative to the largest."""
    peak = scale.max()
    return scale / peak if peak > 0.0 else scale
