"""Shares that minimise the variance of a step's gradient, and never raise it."""

from __future__ import annotations

import math

import numpy as np
import torch

from adaptmix._checks import FloatArray, lower_share
from adaptmix._types import DomainStats
from adaptmix.policies._moments import row_scatter
from adaptmix.policies._variance import StepVariance
from adaptmix.solvers import neyman_shares
from adaptmix.solvers._arguments import share_bounds

# How much of its proportional rows a domain keeps so that its estimates stay alive: the first that
# costs no more than this part of the variance, or the last.
_EXPLORE = (0.1, 0.03, 0.01)
_ALMOST_NOTHING = 1.01
# A domain that counts must be drawn now and then, or no multiplier makes the gradient unbiased.
LEAST_SHARE = 1e-6
# A gain is acted upon when it is above this quantile of what noise alone predicts.
_CONFIDENCE, _DEVIATIONS = 0.95, 1.6448536269514722  # and the normal quantile of it
_ITERATIONS, _PRECISION = 20, 1e-13  # of Newton's method
# Golden section: each evaluation leaves 0.618 of the interval, 30 leave 5e-7.
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_EVALUATIONS = 30


def check_bounds(lower: float | None, upper: float, num_domains: int) -> None:
    """Check a policy's bounds on shares of rows.

    Raises:
        ValueError: ``lower`` outside [0, 1/K], or an upper bound below 1/K.
    """
    floor = 0.0 if lower is None else lower_share("lower", lower, num_domains)
    share_bounds(floor, upper, num_domains)


def least_variance_shares(
    importance: FloatArray,
    loss: FloatArray,
    stats: DomainStats,
    *,
    lower: float | FloatArray | None,
    upper: float,
    rows: int | None,
    sampler: str | None,
) -> FloatArray:
    """Return the sampling weights, (K,), of least variance for the gradient of Σ π w L.

    They do no harm by two rules. Their predicted variance is never above that of proportional
    sampling, or of the nearest shares within the bounds. If the best shares of the smooth model
    would be noisier, they go only as far towards these as the variance falls. And they are
    proportional sampling unless the predicted gain is above what the noise of the statistics alone
    would predict in 1 of 20 decisions (``noise_gain``).

    Args:
        importance: (K,) π.
        loss: (K,) w.
        stats: statistics; what is not known of a domain is the others' mean.
        lower: least share of the step's rows, one or (K,); when None a part of the domain's
            proportional share that costs next to nothing.
        upper: greatest share of the step's rows.
        rows: of a step's global batch; None when not known.
        sampler: "stratified" or "multinomial".
    """
    used = importance * loss
    K = used.size
    variance = StepVariance.of(used, stats, rows=rows, sampler=sampler)
    proportional = variance.row_shares(importance)
    low, high = share_bounds(0.0 if lower is None else lower, upper, K)
    low = np.maximum(low, LEAST_SHARE * np.minimum(proportional, 1.0 / K))
    inside = ((low <= proportional) & (proportional <= high)).all()
    start = proportional if inside else neyman_shares(proportional, lower=low, upper=high)
    # To the bit, where nothing is to be moved.
    unmoved = importance if inside else variance.unit_shares(start)
    before = variance.at(start)
    if not before > 0.0:
        return unmoved
    best = variance.best(low, high)
    after = variance.at(best)
    if lower is None:
        best, after = _exploring(variance, start, best, after, low, high)
    if after > before:
        best, after = _as_far_as_helps(variance, start, best, before)
    if before <= after * (1.0 + noise_gain(start, stats, rows=rows)):
        return unmoved
    return variance.unit_shares(best)


def noise_gain(row_shares: FloatArray, stats: DomainStats, *, rows: int | None) -> float:
    """Return the gain that noise predicts in 1 of 20 decisions where there is nothing to gain.

    An estimate of a moment from f degrees of freedom has the relative variance c / f. Here c is the
    relative variance of one row's squared norm, measured in the run (``moments.row_scatter``), and
    5 before it is known. If shares q are optimal, the shares that fit the estimates promise a gain
    of Σ q (δ − δ̄)², where δ are errors of relative standard deviations, of variance c / (4 f). Its
    quantile is that of the multiple of χ² with the same mean and variance: K alike domains about
    their mean have K − 1 degrees of freedom.

    Args:
        row_shares: (K,) shares of rows without AdaptMix.
        stats: f is ``grad_freedom`` for domains with a row or more in every step, and ``count`` for
            the others, whose moments come from single rows.
        rows: of a step's global batch; None when not known.

    Source:
        Satterthwaite, An approximate distribution of estimates of variance components (1946).
    """
    pairs = (stats.grad_freedom > 0.0) & ((rows or np.inf) * row_shares >= 1.0)
    freedom = np.where(pairs, stats.grad_freedom, stats.count)
    # Old evidence fades, but no estimate is noisier than one row's. A domain that nobody has seen
    # has the others' mean: no noise of its own.
    noise = np.where(freedom > 0.0, row_scatter(stats) / 4.0 / np.maximum(freedom, 1.0), 0.0)
    # The mean and half the variance of a quadratic form are traces: here of (diag q − q qᵀ) noise.
    part, shared = row_shares * (1.0 - row_shares) * noise, row_shares**2 * noise
    mean = float(part.sum())
    if not mean > 0.0:
        return 0.0
    spread = float(np.square(part).sum() + shared.sum() ** 2 - np.square(shared).sum())
    shape = mean**2 / spread / 2.0
    return mean * gamma_quantile(shape) / shape


def gamma_quantile(shape: float) -> float:
    """Return the 0.95 quantile of a gamma distribution of scale 1, by Newton's method.

    SciPy takes longer to import than a hundred updates to compute.

    Args:
        shape: a ≥ 1/2.

    Source:
        The start is of Wilson and Hilferty, The distribution of chi-square (1931). The density
        falls there, so that iterates rise to the quantile from the second one on.
    """
    a = torch.tensor(shape, dtype=torch.float64)
    x = shape * (1.0 - 1.0 / (9.0 * shape) + _DEVIATIONS / (3.0 * math.sqrt(shape))) ** 3
    for _ in range(_ITERATIONS):
        missing = _CONFIDENCE - float(torch.special.gammainc(a, torch.tensor(x, dtype=a.dtype)))
        step = missing * math.exp(x - (shape - 1.0) * math.log(x) + math.lgamma(shape))
        x += step
        if abs(step) <= _PRECISION * x:
            break
    return x


def _exploring(
    variance: StepVariance,
    proportional: FloatArray,
    best: FloatArray,
    least: float,
    lower: FloatArray,
    upper: FloatArray,
) -> tuple[FloatArray, float]:
    """Return the best shares with a floor under every domain, and their variance."""
    for part in _EXPLORE:
        floor = np.maximum(lower, part * proportional)
        if (best >= floor).all():
            return best, least
        kept = variance.best(floor, upper)
        after = variance.at(kept)
        if after <= _ALMOST_NOTHING * least:
            break
    return kept, after


def _as_far_as_helps(
    variance: StepVariance, start: FloatArray, end: FloatArray, before: float
) -> tuple[FloatArray, float]:
    """Return the shares of least variance between two, and that variance, at most ``before``.

    The variance is convex along the line, apart from covariances of counts, so golden section finds
    its least.
    """

    def at(t: float) -> float:
        return variance.at(start + t * (end - start))

    low, high = 0.0, 1.0
    left, right = 1.0 - _GOLDEN, _GOLDEN
    at_left, at_right = at(left), at(right)
    for _ in range(_EVALUATIONS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = at(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = at(right)
    after, part = min((at_left, left), (at_right, right))
    return (start + part * (end - start), after) if after < before else (start, before)
