"""Water-filling: shares that rise with one common level until they add up, within bounds."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from adaptmix._checks import FloatArray

# Shares that miss their total by no more, relative, miss it by their own rounding.
_SETTLED = 4.0 * np.finfo(np.float64).eps
# Newton's method needs two to five steps, or is in trouble.
_STEPS = 6


def water_fill(
    slope: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    *,
    threshold: FloatArray | float = 0.0,
    total: float = 1.0,
) -> FloatArray:
    """Return shares_i = clip(slope_i · (θ − threshold_i), lower_i, upper_i) that sum to ``total``.

    The sum is piecewise linear in the level θ and never falls. Mostly a few steps of Newton's
    method find θ; failing that, a binary search over the sorted kinks finds the linear piece that
    holds it, and interpolation between the piece's ends is exact. Every evaluation sums
    non-negative terms: nothing cancels, whatever the range of the slopes. O(K log K).

    Domains of slope 0 come last: they keep ``lower`` until all others are at ``upper``, and what
    is left then is shared as evenly as their bounds allow. Where a slope is so steep that both
    of a domain's kinks round to one number, domains with that kink share by upper − lower.

    Args:
        slope: (K,) finite and non-negative.
        lower: (K,) at least 0.
        upper: (K,) at least ``lower``.
        threshold: scalar or (K,), the level at which a share would leave 0.
        total: what the shares add up to, between Σ lower and Σ upper.

    Returns:
        (K,) shares.

    Example:
        >>> water_fill(np.array([6.0, 3.0, 1.0]), np.zeros(3), np.full(3, 0.4)).round(3)
        array([0.4, 0.4, 0.2])
    """
    if 0.0 < (steepness := float(slope.sum())) < np.inf:
        if isinstance(threshold, float):
            free: FloatArray = slope / steepness * total
            if (free >= lower).all() and (free <= upper).all():
                return free
        found = _by_newton(slope, lower, upper, threshold, total, steepness)
        if found is not None:
            return found
    if not slope.all():
        return _idle_last(slope, lower, upper, threshold, total)
    with np.errstate(over="ignore"):
        enter = threshold + lower / slope
        leave = threshold + upper / slope
        kinks = np.concatenate((enter, leave))
        kinks.sort()
        share = np.empty_like(slope)

        def fill(level: float) -> float:
            np.multiply(slope, level - threshold, out=share)
            np.minimum(share, upper, out=share)
            np.maximum(share, lower, out=share)
            return float(np.add.reduce(share))

        def fill_side(index: int) -> float:
            """Fill just before (even index) or just after (odd) kink index // 2."""
            level = kinks[index // 2]
            fill(level)
            # Kinks meet the bounds exactly, and a domain whose kinks are both here jumps.
            if index % 2:
                np.putmask(share, leave <= level, upper)
                np.putmask(share, enter > level, lower)
            else:
                np.putmask(share, leave < level, upper)
                np.putmask(share, enter >= level, lower)
            return float(np.add.reduce(share))

        last = 2 * kinks.size - 1
        beyond = 2 * bisect_right(kinks, total, lo=1, hi=kinks.size - 1, key=fill)
        base, start = fill_side(beyond - 1), share.copy()
        top = fill_side(beyond)
        if not base <= total <= top:  # a jump, or kinks that rounding has displaced
            beyond = bisect_right(range(last + 1), total, lo=1, hi=last, key=fill_side)
            base, start = fill_side(beyond - 1), share.copy()
            top = fill_side(beyond)
    part = min(max((total - base) / (top - base), 0.0), 1.0) if top > base else 0.0
    return np.minimum(start + part * (share - start), share)


def _by_newton(
    slope: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    threshold: FloatArray | float,
    total: float,
    steepness: float,
) -> FloatArray | None:
    """Return the shares if Newton's method finds their level to rounding in a few steps.

    It starts where the level would be without bounds, and is exact as soon as a step stays on one
    linear piece. None for what takes the kinks: jumps, slopes so steep that no level is fine
    enough, and totals at the ends, where every share is exactly at its bound.
    """
    if not lower.sum() < total < upper.sum():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        level = (total + float((slope * threshold).sum())) / steepness
        for _ in range(_STEPS):
            share = slope * (level - threshold)
            np.minimum(share, upper, out=share)
            np.maximum(share, lower, out=share)
            missing = total - float(share.sum())
            if abs(missing) <= _SETTLED * total:
                return share
            between = (lower < share) & (share < upper)
            steepness = float(slope.dot(between))
            if not steepness > 0.0:
                return None
            level += missing / steepness
    return None


def _idle_last(
    slope: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    threshold: FloatArray | float,
    total: float,
) -> FloatArray:
    idle = slope == 0.0
    active = ~idle
    room, most = total - lower[idle].sum(), upper[active].sum()
    share: FloatArray = np.where(idle, lower, upper)
    if active.any() and room <= most:
        ready = np.broadcast_to(threshold, slope.shape)[active]
        share[active] = water_fill(
            slope[active], lower[active], upper[active], threshold=ready, total=room
        )
    else:
        share[idle] = water_fill(
            np.ones(int(idle.sum())), lower[idle], upper[idle], total=total - most
        )
    return share
