"""How quiet a gradient is, and how much quieter it could be."""

from __future__ import annotations

import numpy as np

from adaptmix.checks import FloatArray
from adaptmix.types import Weights


def variance_ratio(shares: FloatArray, weights: Weights, grad_var: FloatArray) -> float:
    """Return the gradient variance under ``shares`` over that at the optimum, at least 1.

    With stratified counts the variance is Σ a² / (B p), a = π w v, and its minimum (Σ a)² / B.
    Domains whose variance is not known are left out of both.

    Args:
        shares: (K,) sampling weights to judge.
        weights: importance and loss weights of the objective.
        grad_var: (K,) within-domain gradient variances, grad².

    Returns:
        The ratio; 1 when no variance is known, NaN never.

    Source:
        Neyman (1934); Salmani et al., arXiv:2511.06913, algorithm "VA".
    """
    scale = weights.importance * weights.loss * np.sqrt(np.where(grad_var > 0.0, grad_var, 0.0))
    known = scale > 0.0
    if not known.any():
        return 1.0
    scale = scale[known] / scale[known].max()
    with np.errstate(divide="ignore"):
        return float((scale * (scale / shares[known])).sum() / scale.sum() ** 2)


def predicted_gain(weights: Weights, grad_var: FloatArray) -> float:
    """Return how many times quieter the best shares are than sampling by importance."""
    return variance_ratio(weights.importance, weights, grad_var)
