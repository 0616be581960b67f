"""How quiet a gradient is, and how much quieter it could be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import DomainStats, Weights
from adaptmix.policies._variance import StepVariance


class Efficiency(NamedTuple):
    """Variances of a step's gradient, relative to one another.

    Attributes:
        ratio: that under the shares judged over the least one, at least 1.
        predicted: that under proportional sampling over the least one, at least 1.
        proposed: that under proportional sampling over that under the weights' own shares; above
            1 they make the gradient quieter, below 1 noisier.
    """

    ratio: float = 1.0
    predicted: float = 1.0
    proposed: float = 1.0


def efficiency(
    shares: FloatArray,
    weights: Weights,
    stats: DomainStats,
    *,
    rows: int | None = None,
    sampler: str = "stratified",
) -> Efficiency:
    """Return how quiet a step's gradient is under ``shares``, and how quiet it could be.

    The least variance is that of the best shares (``solvers.neyman_shares``), or of any others
    here where that is lower. What is not known of a domain is taken to be the others' mean.

    Args:
        shares: (K,) sampling weights to judge.
        weights: importance and loss weights of the objective, and shares of their own.
        stats: statistics to go by.
        rows: of a step's global batch; so many when None that every count is large.
        sampler: "stratified" or "multinomial".

    Returns:
        The ratios; 1 when nothing is known, NaN never.

    Source:
        Neyman (1934); Salmani et al., arXiv:2511.06913, algorithm "VA"; ``variance.StepVariance``.
    """
    if np.isnan(stats.grad_var).all() and np.isnan(stats.grad_sq).all():
        return Efficiency()
    counts = weights.objective
    variance = StepVariance.of(counts, stats, rows=rows, sampler=sampler)
    K = counts.size
    best = variance.at(variance.best(np.zeros(K), np.ones(K)))
    now, plain, proposed = (
        variance.at(variance.row_shares(each)) for each in (shares, weights.plain, weights.sampling)
    )
    least = min(best, plain)
    return Efficiency(_over(now, min(least, now)), _over(plain, least), _over(plain, proposed))


def _over(variance: float, other: float) -> float:
    return variance / other if other > 0.0 else 1.0


def variance_ratio(
    shares: FloatArray,
    weights: Weights,
    stats: DomainStats,
    *,
    rows: int | None = None,
    sampler: str = "stratified",
) -> float:
    """Return the step's gradient variance under ``shares`` over the least one, at least 1."""
    return efficiency(shares, weights, stats, rows=rows, sampler=sampler).ratio


def predicted_gain(
    weights: Weights, stats: DomainStats, *, rows: int | None = None, sampler: str = "stratified"
) -> float:
    """Return how many times quieter the best shares are than sampling by importance."""
    return efficiency(weights.sampling, weights, stats, rows=rows, sampler=sampler).predicted


def sampling_gain(
    weights: Weights, stats: DomainStats, *, rows: int | None = None, sampler: str = "stratified"
) -> float:
    """Return the gradient's variance under proportional sampling over that under ``weights``.

    Above 1 the weights' shares make the gradient quieter, below 1 noisier.
    """
    return efficiency(weights.sampling, weights, stats, rows=rows, sampler=sampler).proposed
