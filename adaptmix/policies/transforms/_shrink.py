"""Shrinkage: estimates with few samples behind them lean on those of all domains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray, number
from adaptmix._credibility import scatter_of
from adaptmix._types import Domains, DomainStats
from adaptmix.policies._base import Run
from adaptmix.policies._moments import row_scatter, within

# Variances, and the count of the samples each is made of.
_FIELDS = {
    "grad_var": "count",
    "grad_sq": "count",
    "noise": "noise_count",
    "loss_var": "loss_count",
}
# The first of them are of gradients, the next is of noise.
_OF_GRADIENTS, _OF_NOISE = 2, 2


@dataclass(frozen=True)
class Shrink:
    """Variances shrunk towards their pooled value, the more the fewer samples are behind them.

    A standard deviation x with n samples behind it becomes

        x + (X − x) · k / (n + k),        X = Σ n x / Σ n,        k = s² / τ²,

    the credibility estimator, or linear empirical Bayes: s² is the sampling variance of one
    sample's worth of evidence, and τ² the variance *between* domains that s² does not explain. Both
    come from the estimates themselves, so that domains which differ by no more than their noise
    become equal (k = ∞) and ones that truly differ are left nearly alone (k → 0). A domain without
    samples gets X, one with infinitely many is exact and stays.

    There are two passes. The first uses the mean s² of all domains. The second uses each domain's
    own s², proportional to the square of its estimate after the first pass, because the error of a
    deviation is proportional to the deviation itself. Raw estimates would not do for s²: a domain
    whose deviation is small by chance would keep it.

    A domain of which every gradient was zero, as of a task that is never rewarded, has no noise of
    its own to go by. One more sample may be like those of the other domains: with n zeros seen, its
    moments are 1 / (n + 1) of their mean, so that it is drawn now and then.

    It prepares ``grad_var``, ``grad_sq``, ``noise`` and ``loss_var``, each on the scale of a
    standard deviation, which is the one that shares are proportional to: shrinking variances
    themselves would let the loudest domain speak for all. Before that, ``grad_var`` becomes
    ``grad_sq`` times the part of it that is within the domain, shrunk alike (``moments.within``):
    a single row has no variance, but its squared norm says more than the other domains do.

    Args:
        samples: samples after which the estimate of a variance is as uncertain as it is large, its
            relative variance being samples / n. It is E[y²] / E[y]² − 1 for the squared norm y of
            one sample: 2 for Gaussian gradients in one direction, less in many, more with heavy
            tails. For gradients and noise it is a prior, which ``grad_sq_scatter`` and
            ``noise_scatter`` replace once they are known. 0 leaves every estimate as it is.

    Raises:
        ValueError: negative samples.

    Source:
        Bühlmann and Straub, Glaubwürdigkeit für Schadensätze (1970); Morris, Parametric Empirical
        Bayes Inference (1983). The scale is ours, the default measured in
        tests/benchmarks/bench_policies.py.

    Example:
        >>> from adaptmix.policies import Run
        >>> shrink = Shrink()
        >>> state = shrink.init(Domains(("a", "b", "c"), sizes=[9, 9, 9]), Run())
        >>> noisy = DomainStats(count=[10, 10, 10], grad_var=[1.0, 1.4, 0.6])
        >>> shrink.prepare(noisy, state)[0].grad_var.round(2).tolist()
        [0.97, 0.97, 0.97]
        >>> known = DomainStats(count=[1000, 1000, 1000], grad_var=[1.0, 100.0, 10000.0])
        >>> shrink.prepare(known, state)[0].grad_var.round(0).tolist()
        [1.0, 100.0, 9948.0]
    """

    samples: float = 5.0

    requires = frozenset[str]()

    def __post_init__(self) -> None:
        number("samples", self.samples, minimum=0.0)

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state, in which nothing is remembered."""
        return {}

    def prepare(
        self, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[DomainStats, dict[str, Any]]:
        """Return the statistics with shrunk variances."""
        if self.samples == 0.0:
            return stats, state
        # (fields, K): NumPy's overhead per operation counts here, so all fields are done at once.
        variance = np.array([getattr(stats, field) for field in _FIELDS])
        variance[0] = within(stats, samples=self.samples)
        if not variance[1].all():
            _lift_zeros(variance[:_OF_GRADIENTS], stats.count)
        count = np.array([getattr(stats, counted) for counted in _FIELDS.values()])
        known = np.isfinite(variance) & (count > 0.0)
        # A deviation's relative variance after one sample: by the delta method, a quarter.
        scatter = np.full((len(_FIELDS), 1), self.samples / 4.0)
        scatter[:_OF_GRADIENTS] = row_scatter(stats, prior=self.samples) / 4.0
        noise = scatter_of(stats.noise_scatter, stats.noise_count, prior=self.samples)
        scatter[_OF_NOISE] = noise / 4.0
        shrunk = _shrunk(variance, np.where(known, count, 0.0), known, scatter)
        return stats.replaced(**dict(zip(_FIELDS, shrunk, strict=True))), state


def _lift_zeros(moments: FloatArray, count: FloatArray) -> None:
    """Give domains whose gradients were all zero a part of the others' moments, in place.

    Args:
        moments: (2, K) ``grad_var`` and ``grad_sq``.
        count: (K,) samples behind each.
    """
    square = moments[1]
    zero, some = (square == 0.0) & (count > 0.0) & np.isfinite(count), square > 0.0
    if zero.any() and some.any():
        moments[:, zero] = square[some].mean() / (count[zero] + 1.0)


def _shrunk(
    variance: FloatArray, weight: FloatArray, known: NDArray[np.bool_], c: FloatArray
) -> FloatArray:
    """Return (fields, K) shrunk variances; a field without counts or variance stays.

    Args:
        variance: (fields, K).
        weight: (fields, K) samples behind each.
        known: (fields, K) whether there are any.
        c: (fields, 1) a deviation's relative variance after one sample.
    """
    exact = np.isinf(weight) if weight.max() == np.inf else None
    if exact is not None:
        # An exact estimate is still only one domain: it counts as much as the best other.
        weight = np.where(exact, _most(np.where(exact, 1.0, weight)), weight)
    with np.errstate(divide="ignore", invalid="ignore"):  # a field that stays comes out as NaN
        x = np.sqrt(np.maximum(np.where(known, variance, 0.0), 0.0))
        peak = _most(x)
        x /= peak
        pull, total = weight * x, _sum(weight)
        away = _sum(pull) / total - x
        # The relative variance of x is c / n, so that x² overestimates its own mean by 1 + c/n.
        sampling = c * _sum(np.square(pull) / (weight + c)) / total
        between = _between(weight, total, away, (_sum(known) - 1.0) * sampling)
        evidence = weight * between
        # s² / (n τ² + s²) is k / (n + k), and right for τ² = 0 too.
        first = x + away * (sampling / (evidence + sampling))
        own = c * np.square(first)
        move = away * (own / (evidence + own))
        if exact is not None:
            move[exact] = 0.0
        return np.where(np.abs(move) > 0.0, np.square(peak * (x + move)), variance)


def _between(
    weight: FloatArray, total: FloatArray, away: FloatArray, noise: FloatArray
) -> FloatArray:
    """Return τ², (fields, 1): the scatter of the deviations that their noise does not explain."""
    spread = total - _sum(np.square(weight)) / total
    excess = _sum(weight * np.square(away)) - noise
    return np.where(spread > 0.0, np.maximum(excess, 0.0) / spread, 0.0)


def _sum(values: NDArray[Any]) -> FloatArray:
    """Return the sum over the domains of each field, (fields, 1)."""
    total: FloatArray = np.add.reduce(values, axis=1, keepdims=True, dtype=np.float64)
    return total


def _most(values: FloatArray) -> FloatArray:
    """Return the largest over the domains of each field, (fields, 1)."""
    most: FloatArray = np.maximum.reduce(values, axis=1, keepdims=True)
    return most
