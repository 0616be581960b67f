"""How quiet a gradient is, and how much quieter it could be."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import DomainStats, Weights
from adaptmix.policies._variance import StepVariance


class Efficiency:
    """The variance of a step's gradient, as statistics have it, under any shares.

    What is not known of a domain is taken to be the others' mean.

    Args:
        weights: importance and loss weights of the objective.
        stats: statistics to go by.
        rows: of a step's global batch; so many when None that every count is large.
        sampler: "stratified" or "multinomial".
    """

    def __init__(
        self,
        weights: Weights,
        stats: DomainStats,
        *,
        rows: int | None = None,
        sampler: str = "stratified",
    ) -> None:
        self._weights = weights
        self._known = not (np.isnan(stats.grad_var).all() and np.isnan(stats.grad_sq).all())
        if self._known:
            self._variance = StepVariance.of(weights.objective, stats, rows=rows, sampler=sampler)

    @cached_property
    def _proportional(self) -> float:
        return self._at(self._weights.plain)

    @cached_property
    def _least(self) -> float:
        K = self._weights.plain.size
        best = self._variance.best(np.zeros(K), np.ones(K))
        return min(self._variance.at(best), self._proportional)

    def _at(self, shares: FloatArray) -> float:
        return self._variance.at(self._variance.row_shares(shares))

    def ratio(self, shares: FloatArray) -> float:
        """Return the variance under (K,) shares over the least one, as ``variance_ratio`` does."""
        if not self._known:
            return 1.0
        now = self._at(shares)
        least = min(now, self._least)
        return now / least if least > 0.0 else 1.0

    @property
    def predicted_gain(self) -> float:
        """How many times quieter the best shares are than sampling by importance."""
        return self.ratio(self._weights.plain)

    @property
    def sampling_gain(self) -> float:
        """How many times quieter the weights' shares are than sampling by importance."""
        if not self._known:
            return 1.0
        after = self._at(self._weights.sampling)
        return self._proportional / after if after > 0.0 else 1.0


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
    return Efficiency(weights, stats, rows=rows, sampler=sampler).ratio(shares)


def predicted_gain(
    weights: Weights, stats: DomainStats, *, rows: int | None = None, sampler: str = "stratified"
) -> float:
    """Return how many times quieter the best shares are than sampling by importance."""
    return Efficiency(weights, stats, rows=rows, sampler=sampler).predicted_gain


def sampling_gain(
    weights: Weights, stats: DomainStats, *, rows: int | None = None, sampler: str = "stratified"
) -> float:
    """Return the gradient's variance under proportional sampling over that under ``weights``.

    Above 1 the weights' shares make the gradient quieter, below 1 noisier.
    """
    return Efficiency(weights, stats, rows=rows, sampler=sampler).sampling_gain
