"""Certificates: relative residuals of optimality conditions, which judge any candidate.

Each takes the arguments of a solver and a candidate. None runs the solver.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, vector
from adaptmix.solvers import _allocation as allocation
from adaptmix.solvers import _counts as whole
from adaptmix.solvers import _gap as gaps
from adaptmix.solvers import joint_weights
from adaptmix.solvers._program import INFINITE_SIZE, Program

_TINY = np.finfo(np.float64).tiny
# Counts this near to one row are one row, whatever has been rounded.
_AT_ONE_ROW = 1e-9
# The bias, in units of the losses' range, that rounding of the shares makes by itself.
_BIAS_ROUNDING = 1e-15
# Values of F below this part of F(1) count as zero.
_NEGLIGIBLE = 1e-20


def allocation_residual(
    scale: ArrayLike,
    shares: ArrayLike,
    *,
    uncentred: ArrayLike | None = None,
    rows: float | None = None,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
    cost: ArrayLike | None = None,
) -> float:
    """Return how far shares are from the conditions that make them optimal; 0 when they are.

    At the optimum a_i v_i / (√c_i p_i), with s_i for v_i below one row, is the same for all shares
    between their bounds, no smaller at an upper and no larger at a lower bound. At one row exactly
    it lies between the values with v_i and with s_i. The residual is relative: it does not change
    with the units of scale or cost.

    Args:
        scale: (K,) as in ``neyman_shares``.
        shares: (K,) shares to judge.
        uncentred: as in ``neyman_shares``.
        rows: as in ``neyman_shares``.
        lower: as in ``neyman_shares``.
        upper: as in ``neyman_shares``.
        cost: as in ``neyman_shares``.

    Returns:
        The relative gap between marginal values, or the excess over a constraint if larger.

    Raises:
        ValueError: as ``neyman_shares``, or shares that are negative or of another length.
    """
    rate, absent, number_of_rows, lo, hi = allocation._program(
        scale, uncentred, rows, lower, upper, cost
    )
    p = vector("shares", shares, size=rate.size, minimum=0.0)
    gain = loss = rate
    if number_of_rows is not None:
        b = number_of_rows * p
        gain = np.where(b < 1.0 - _AT_ONE_ROW, absent, rate)
        loss = np.where(b > 1.0 + _AT_ONE_ROW, rate, absent)
    return trade_residual(_per(gain, p), p, lo, hi, loss=_per(loss, p))


def _per(worth: FloatArray, shares: FloatArray) -> FloatArray:
    """Return worth / shares: infinite where a share is 0 and worth something."""
    never = np.where(worth > 0.0, np.inf, 0.0)
    return np.divide(worth, shares, out=never, where=shares > 0.0)


def counts_residual(
    scale: ArrayLike, counts: ArrayLike, *, minimum: ArrayLike = 1, maximum: ArrayLike | None = None
) -> float:
    """Return the relative gain that moving one sample could bring; 0 when counts are optimal.

    The objective is separable and convex, so counts that no single move improves are optimal.
    Unlike the other residuals this one jumps: sub-optimal counts miss by a whole sample.

    Args:
        scale: (K,) as in ``neyman_counts``.
        counts: (K,) integers to judge.
        minimum: as in ``neyman_counts``.
        maximum: as in ``neyman_counts``.

    Returns:
        1 − (smallest loss of taking a sample away) / (largest gain of adding one), at least 0.

    Raises:
        TypeError: counts or bounds that are not integers.
        ValueError: as ``neyman_counts``, or counts outside their bounds.
    """
    size = np.size(scale)
    b = whole._integers("counts", counts, size)
    a, low, high = whole._program(scale, int(b.sum()), minimum, maximum)
    if (b < low).any() or (b > high).any():
        i = int(((b < low) | (b > high)).argmax())
        raise ValueError(f"counts must be in [{low[i]}, {high[i]}]; got {b[i]} at {i}.")
    gain = whole._priority(a, b).max(where=b < high, initial=0.0)
    loss = whole._priority(a, np.maximum(b - 1, 0)).min(where=b > low, initial=np.inf)
    return float(1.0 - loss / gain) if gain > loss else 0.0


def fgls_residual(
    noise: ArrayLike, loss: ArrayLike, *, importance: ArrayLike, sizes: ArrayLike | None = None
) -> float:
    """Return how far loss weights are from FGLS's optimality conditions; 0 when they are met.

    At the optimum π_i w_i σ_i² / n_i, the marginal variance of a domain's weight, is the same for
    all.

    Args:
        noise: (K,) as in ``fgls_weights``.
        loss: (K,) loss weights to judge.
        importance: (K,) as in ``fgls_weights``.
        sizes: (K,) as in ``fgls_weights``.

    Returns:
        The relative spread of the marginal variances, or the distance of Σ π w from one if larger.

    Raises:
        ValueError: as ``fgls_weights``, or negative weights.
    """
    pi = vector("importance", importance, minimum=0.0, strict=True)
    pi /= pi.sum()
    variance = vector("noise", noise, size=pi.size, minimum=0.0)
    w = vector("loss", loss, size=pi.size, minimum=0.0)
    marginal = w * (variance / max(variance.max(), _TINY))
    if sizes is not None:
        n = vector("sizes", sizes, size=pi.size, minimum=0.0, strict=True, infinite=True)
        marginal *= pi / n
    spread = np.ptp(marginal) / max(marginal.max(), _TINY)
    return float(max(spread, abs(pi @ w - 1.0)))


def gap_residual(
    loss_mean: ArrayLike,
    loss_var: ArrayLike,
    loss: ArrayLike,
    *,
    importance: ArrayLike,
    sizes: ArrayLike,
    variance_penalty: float = 1.0,
    lower: float = 0.0,
) -> float:
    """Return a bound on (F(w) − min F) / F(w), by duality; 0 when w meets the KKT conditions.

    With u = π w and D = λ Var / n: for every g and ν, F is at least Σ D u² − 2 g Σ u L −
    2 ν (Σ u − 1) + const, whose minimiser over u ≥ π lower is û = max(π lower, (ν + g L) / D). The
    bound is the value of F at w less that minimum, with g and ν fitted to w. It does not change
    with the units of the loss.

    Args:
        loss_mean: (K,) as in ``gap_weights``.
        loss_var: (K,) as in ``gap_weights``.
        loss: (K,) loss weights to judge.
        importance: as in ``gap_weights``.
        sizes: as in ``gap_weights``.
        variance_penalty: as in ``gap_weights``.
        lower: as in ``gap_weights``.

    Returns:
        The relative duality gap, or the excess over a constraint if larger. A bias as small as the
        rounding of Σ π w L counts as zero.

    Raises:
        ValueError: as ``gap_weights``, or weights that are negative or of another length.
    """
    problem = gaps._program(loss_mean, loss_var, importance, sizes, variance_penalty, lower)
    pi, d = problem.importance, problem.curvature
    w = vector("loss", loss, size=pi.size, minimum=0.0)
    u = pi * w
    bias = float((pi - u) @ problem.lean_from(int(u.argmax())))
    value, start = bias**2 + d @ u**2, d @ pi**2
    gap = _gap_to_bound(problem, u, bias)
    relative = gap / max(value, _NEGLIGIBLE * start) if gap > 0.0 else 0.0
    return float(max(relative, abs(u.sum() - 1.0), lower - w.min()))


def _gap_to_bound(problem: gaps._Program, u: FloatArray, bias: float) -> float:
    """Return F(u) less the largest of three lower bounds, at g = 0, the bias and a fit to u."""
    d, floor = problem.curvature, problem.floor
    slope = d * u
    # Least squares in the norm of the gap itself, leaving out what is at its floor.
    scale = max(_NEGLIGIBLE * slope.max(), np.finfo(np.float64).tiny)
    weight = np.maximum(u - floor, 0.0) / np.maximum(slope, scale)
    weight /= max(weight.sum(), np.finfo(np.float64).tiny)
    lean = problem.lean_from(int(weight.argmax()))
    centred = lean - weight @ lean
    moment = weight @ centred**2
    fitted = float((weight * centred) @ (slope - weight @ slope) / moment) if moment > 0.0 else 0.0
    gaps = []
    for g in (0.0, bias, fitted):
        price = -g * lean
        # Above the least price of a domain without curvature the bound is −∞.
        nu = min(weight @ (slope + price), price.min(where=d == 0.0, initial=np.inf))
        best = np.maximum(np.divide(nu - price, d, out=np.zeros_like(d), where=d > 0.0), floor)
        slack = np.where(best > floor, 0.0, np.maximum(d * best + price - nu, 0.0))
        off = max(abs(bias - g) - _BIAS_ROUNDING, 0.0)
        gaps.append(off**2 + d @ (u - best) ** 2 + 2.0 * slack @ (u - best))
    return float(min(gaps))


def joint_residual(
    grad_var: ArrayLike, noise: ArrayLike, loss: ArrayLike, sampling: ArrayLike, **arguments: Any
) -> float:
    """Return how far weights are from the joint program's optimality conditions; 0 when met.

    Two conditions: the shares cannot be traded for a larger Φ, and the loss weights are the best
    ones for these shares, or with a bias penalty, the weights' value is not above a bound on every
    weights' value, by duality. Units of the statistics do not change it.

    Args:
        grad_var: (K,) as in ``joint_weights``.
        noise: (K,) as in ``joint_weights``.
        loss: (K,) loss weights to judge.
        sampling: (K,) shares to judge.
        arguments: the others of ``joint_weights``.

    Returns:
        The larger of the shares' relative gap between marginal values and the loss weights'
        distance Σ π |w − w*(p)| from the best ones, or the relative duality gap.
    """
    problem = joint_weights(grad_var, noise, **arguments)._program
    size = problem.sizes.size
    w = vector("loss", loss, size=size, minimum=0.0)
    p = vector("sampling", sampling, size=size, minimum=0.0)
    multiplier = problem.multiplier[0]
    tilt = problem.tilt(multiplier)
    trade = trade_residual(_gain(problem, p, tilt), p, problem.lower, problem.upper)
    if multiplier != 0.0:
        return max(trade, _joint_gap(problem, w, p))
    distance = float(problem.importance @ np.abs(w - problem.loss_weights(p, tilt)))
    return max(trade, distance)


def _gain(problem: Program, shares: FloatArray, tilt: FloatArray | float) -> FloatArray:
    """Return s_i / (1/n_i + κ'/p_i) / p_i, the root of Φ's slope up to √κ'."""
    spread = shares / problem.finite_sizes + problem.kappa
    strength = problem.strength * tilt
    never = np.where(strength > 0.0, np.inf, 0.0)
    return np.divide(strength, spread, out=never, where=spread > 0.0)


def _joint_gap(problem: Program, loss: FloatArray, shares: FloatArray) -> float:
    """Return 1 − bound / value, where 1 / (t²/λ + 2 Ψ(t)) bounds value / signal² for any t."""
    t = problem.multiplier[0]
    tilt = problem.tilt(t)
    curvature = problem.grad_var / problem.noise
    worth = np.minimum(problem.samples(problem.shares(tilt)), INFINITE_SIZE) / problem.noise
    bound = 1.0 / (t**2 / problem.penalty + float((np.square(tilt) * worth) @ curvature))
    signal = float(problem.importance * loss @ curvature)
    return max(0.0, 1.0 - bound * signal**2 / problem.value(loss, shares))


def trade_residual(
    gain: FloatArray,
    shares: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    *,
    loss: FloatArray | None = None,
) -> float:
    """Return by how much, relatively, shares miss the optimum of a concave separable program.

    Shares are optimal when no domain that may grow gains more from it than a domain that may
    shrink loses: max over shares < upper of the gain ≤ min over shares > lower of the gain.

    Args:
        gain: (K,) non-negative marginal value of each share, or any power of it.
        shares: (K,) shares to judge.
        lower: (K,) smallest shares.
        upper: (K,) largest shares.
        loss: (K,) what each share loses when it shrinks, at a kink more than it gains when it
            grows; the gain when None.

    Returns:
        The largest of the relative gap between those two gains (0 to 1), the distance of
        Σ shares from one, and the excess over a bound.
    """
    most = gain.max(where=shares < upper, initial=0.0)
    least = (gain if loss is None else loss).min(where=shares > lower, initial=np.inf)
    gap = 1.0 - least / most if most > least else 0.0
    outside = max((lower - shares).max(), (shares - upper).max(), 0.0)
    return float(max(gap, abs(shares.sum() - 1.0), outside))
