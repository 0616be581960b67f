"""How quiet a gradient is, and how much quieter it could be."""

from __future__ import annotations

import numpy as np

from adaptmix.checks import FloatArray
from adaptmix.types import MOMENTS, DomainStats, Weights


def variance_ratio(
    shares: FloatArray, weights: Weights, stats: DomainStats, *, sampler: str = "stratified"
) -> float:
    """Return the gradient variance under ``shares`` over that at the optimum, at least 1.

    With stratified counts the variance is Σ a² / (B p), a = π w v, and its minimum (Σ a)² / B. With
    multinomial ones a = π w s, and ‖Σ π w μ‖² is taken off both. Domains whose moment is not known
    are left out.

    Args:
        shares: (K,) sampling weights to judge.
        weights: importance and loss weights of the objective.
        stats: statistics to go by.
        sampler: "stratified" or "multinomial".

    Returns:
        The ratio; 1 when nothing is known, NaN never.

    Source:
        Neyman (1934); Salmani et al., arXiv:2511.06913, algorithm "VA".
    """
    moment = getattr(stats, MOMENTS[sampler])
    counts = weights.importance * weights.loss
    scale = counts * np.sqrt(np.where(moment > 0.0, moment, 0.0))
    known = scale > 0.0
    if not known.any():
        return 1.0
    peak = scale[known].max()
    scale = scale[known] / peak
    mean = 0.0
    if sampler == "multinomial" and stats.grad_gram is not None:
        mean = max(float(counts @ np.nan_to_num(stats.grad_gram) @ counts) / peak**2, 0.0)
    with np.errstate(divide="ignore"):
        now = float((scale * (scale / shares[known])).sum())
    least = float(scale.sum() ** 2)
    # An estimated mean gradient may come out longer than the second moments allow.
    return (now - mean) / (least - mean) if mean < least else now / least


def predicted_gain(weights: Weights, stats: DomainStats, *, sampler: str = "stratified") -> float:
    """Return how many times quieter the best shares are than sampling by importance."""
    return variance_ratio(weights.importance, weights, stats, sampler=sampler)
