"""Standard errors of what is estimated while training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import DomainStats, Weights

# The moment that tells a step's variance, and what is behind it.
_BEHIND = {"stratified": ("grad_var", "grad_freedom"), "multinomial": ("grad_sq", "count")}


class GainError(NamedTuple):
    """What noise in the statistics does to a predicted gain.

    Attributes:
        bias: by how much the gain comes out too high on average.
        error: its standard error.
    """

    bias: float
    error: float


def grad_std_error(stats: DomainStats) -> FloatArray:
    """Return (K,) standard errors of √``grad_var``: √(v² / 2f) with f degrees of freedom.

    They are those of normal gradients with one direction; more directions make them smaller.
    """
    return np.sqrt(stats.grad_var) * _relative(stats.grad_freedom)


def loss_error(stats: DomainStats, lengths: FloatArray) -> FloatArray:
    """Return (K,) standard errors of ``loss_mean``.

    Args:
        stats: statistics.
        lengths: (K,) mean tokens per row; ones with unit "sample".
    """
    rows = np.where(stats.loss_count > 0.0, stats.loss_count, np.nan)
    return np.sqrt(stats.loss_var / (rows * lengths))


def noise_error(stats: DomainStats) -> FloatArray:
    """Return (K,) standard errors of ``noise``, σ² √(2 / n) for n normal residuals."""
    return stats.noise * 2.0 * _relative(stats.noise_count)


def _relative(freedom: FloatArray) -> FloatArray:
    """Return (K,) relative standard errors of a standard deviation; NaN without freedom."""
    return 1.0 / np.sqrt(2.0 * np.where(freedom > 0.0, freedom, np.nan))


def gain_error(
    gain: float, weights: Weights, stats: DomainStats, *, sampler: str = "stratified"
) -> GainError:
    """Return bias and standard error of a predicted gain, NaN where nothing is known.

    The gain is G = Σ a² / π · 1 / (Σ a)², a = π w v. Its logarithm is expanded to second order in
    the logarithms of v, whose variances are 1 / 2f. The second order matters: where domains are
    equally noisy the first vanishes, and noise alone makes G exceed 1.

    Args:
        gain: as predicted.
        weights: importance and loss weights of the objective.
        stats: what it was predicted from.
        sampler: "stratified" or "multinomial".

    Source:
        The delta method, to second order: Casella and Berger, Statistical Inference, 5.5.4.
    """
    moment, freedom = (getattr(stats, name) for name in _BEHIND[sampler])
    part = weights.objective * np.sqrt(np.where(moment > 0.0, moment, 0.0))
    known = (part > 0.0) & (freedom > 0.0)
    if not known.any():
        return GainError(np.nan, np.nan)
    part, pi, freedom = part[known], weights.plain[known], freedom[known]
    least = part / part.sum()
    proportional = part**2 / pi
    proportional = proportional / proportional.sum()
    variance = 1.0 / (2.0 * freedom)
    slope = 2.0 * (proportional - least)
    bend = -4.0 * np.outer(proportional, proportional) + 2.0 * np.outer(least, least)
    bend[np.diag_indices_from(bend)] += 4.0 * proportional - 2.0 * least
    bias = 0.5 * float(bend.diagonal() @ variance)
    squared = float(slope**2 @ variance) + 0.5 * float(variance @ bend**2 @ variance)
    return GainError(gain * bias, gain * np.sqrt(squared))
