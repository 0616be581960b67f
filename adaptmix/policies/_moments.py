"""The two moments of a domain's gradients, from estimates that may be noisy or not there."""

from __future__ import annotations

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._credibility import HEAVY_TAILS, scatter_of
from adaptmix._types import DomainStats


def moments(stats: DomainStats) -> tuple[FloatArray, FloatArray]:
    """Return (K,) variances v² and second moments s² ≥ v², in the objective's unit.

    A domain whose moments are not known gets the others' mean. Where single rows tell s² and
    nothing tells v² of any domain, s² stands for both; where only v² is given, v² does.
    """
    square, variance = stats.grad_sq, within(stats)
    if np.isnan(square).all():
        # s² per token is the row's v² + ‖μ‖² times the row's length, in the unit of v².
        mean = np.nan_to_num(stats.grad_mean_sq) * stats.tokens_per_row
        square = variance + np.maximum(mean, 0.0)
    square = np.maximum(pooled(square, stats.count), 0.0)
    if np.isnan(variance).all():
        return square, square
    variance = np.maximum(pooled(variance, stats.count), 0.0)
    return np.minimum(variance, square), square


def pooled(values: FloatArray, count: FloatArray) -> FloatArray:
    """Replace what is unknown (NaN) by the mean of what is known, weighted by count.

    Args:
        values: (K,) with NaN for domains that were not seen.
        count: (K,) samples behind each; infinite means exact.

    Returns:
        (K,) finite values; ones when nothing is known.
    """
    known = np.isfinite(values)
    if known.all():
        return values
    if not known.any():
        return np.ones_like(values)
    trust = np.where(np.isinf(count), 1.0, np.maximum(count, 0.0))[known]
    if not trust.any():
        trust = np.ones_like(trust)
    peak = values[known].max()
    scaled = values[known] / peak if peak > 0.0 else values[known]
    mean = float(np.average(scaled, weights=trust)) * (peak if peak > 0.0 else 1.0)
    return np.where(known, values, mean)


def within(stats: DomainStats, *, samples: float = 0.0) -> FloatArray:
    """Return ``grad_var`` as the second moment times the part of it that is within the domain.

    Two rows of a domain in one step tell its variance v², a single one only its second moment s².
    The part r = v² / s² differs less between domains, and over time, than either: with f degrees of
    freedom behind v², it is taken as r + (R − r) · k / (f + k), R = Σ f r / Σ f, R ≤ 1.

    Args:
        stats: statistics; without ``grad_sq`` of a domain, its ``grad_var`` stays.
        samples: k ≥ 0; at 0 only variances that are not known are replaced.

    Returns:
        (K,) variances, NaN where neither moment is known; ``grad_var`` where none is known.
    """
    variance, square, freedom = stats.grad_var, stats.grad_sq, stats.grad_freedom
    known = np.isfinite(variance)
    if samples == 0.0 and known.all():
        return variance
    both = known & (freedom > 0.0) & (square > 0.0)
    if both.all():
        return _leant(variance, square, freedom, samples)[0]
    if not both.any():
        return variance
    leant, part = _leant(variance[both], square[both], freedom[both], samples)
    filled: FloatArray = np.where(known, variance, square * part)
    filled[both] = leant
    return filled


def _leant(
    variance: FloatArray, square: FloatArray, freedom: FloatArray, samples: float
) -> tuple[FloatArray, float]:
    """Return variances whose part of the second moment leans on the mean part, and this part."""
    part = variance / square
    exact = freedom == np.inf if freedom.max() == np.inf else None
    trust = freedom if exact is None else np.where(exact, 1.0, freedom)
    mean = min(float(trust @ part) / float(trust.sum()), 1.0)
    if samples == 0.0:
        return variance, mean
    moved: FloatArray = square * (part + (mean - part) * (samples / (freedom + samples)))
    # An estimate that is exact stays to the last bit.
    return moved if exact is None else np.where(exact, variance, moved), mean


def row_scatter(stats: DomainStats, *, prior: float = HEAVY_TAILS) -> float:
    """Return the relative variance of one row's ‖∇ℓ‖², over all domains: Var ‖∇ℓ‖² / s⁴.

    An estimate of s² from n rows has this over n. It is 2 for Gaussian gradients in one direction,
    less in many, more with heavy tails.

    Args:
        stats: whose ``grad_sq_scatter`` tells it.
        prior: what it is taken to be where nothing is known.
    """
    return scatter_of(stats.grad_sq_scatter, stats.grad_sq_freedom, prior=prior)
