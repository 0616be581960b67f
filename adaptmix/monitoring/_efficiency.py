"""How quiet a gradient is, and how much quieter it could be."""

from __future__ import annotations

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import DomainStats, Weights
from adaptmix.policies._variance import StepVariance


def variance_ratio(
    shares: FloatArray,
    weights: Weights,
    stats: DomainStats,
    *,
    rows: int | None = None,
    sampler: str = "stratified",
) -> float:
    """Return the step's gradient variance under ``shares`` over the least one, at least 1.

    The least one is that of the best shares (``solvers.neyman_shares``), or of proportional
    sampling where that is lower. What is not known of a domain is taken to be the others' mean.

    Args:
        shares: (K,) sampling weights to judge.
        weights: importance and loss weights of the objective.
        stats: statistics to go by.
        rows: of a step's global batch; so many when None that every count is large.
        sampler: "stratified" or "multinomial".

    Returns:
        The ratio; 1 when nothing is known, NaN never.

    Source:
        Neyman (1934); Salmani et al., arXiv:2511.06913, algorithm "VA"; ``variance.StepVariance``.
    """
    if np.isnan(stats.grad_var).all() and np.isnan(stats.grad_sq).all():
        return 1.0
    counts = weights.objective
    variance = StepVariance.of(counts, stats, rows=rows, sampler=sampler)
    K = counts.size
    candidates = (variance.best(np.zeros(K), np.ones(K)), variance.row_shares(weights.plain))
    now = variance.at(variance.row_shares(shares))
    least = min(now, *map(variance.at, candidates))
    return now / least if least > 0.0 else 1.0


def predicted_gain(
    weights: Weights, stats: DomainStats, *, rows: int | None = None, sampler: str = "stratified"
) -> float:
    """Return how many times quieter the best shares are than sampling by importance."""
    return variance_ratio(weights.plain, weights, stats, rows=rows, sampler=sampler)


def sampling_gain(
    weights: Weights, stats: DomainStats, *, rows: int | None = None, sampler: str = "stratified"
) -> float:
    """Return the gradient's variance under proportional sampling over that under ``weights``.

    Above 1 the weights' shares make the gradient quieter, below 1 noisier.
    """
    if np.isnan(stats.grad_var).all() and np.isnan(stats.grad_sq).all():
        return 1.0
    variance = StepVariance.of(weights.objective, stats, rows=rows, sampler=sampler)
    before, after = (
        variance.at(variance.row_shares(shares)) for shares in (weights.plain, weights.sampling)
    )
    return before / after if after > 0.0 else 1.0
