"""Variance-aware sampling (VA): the shares that make the gradient as quiet as it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmix.checks import FloatArray
from adaptmix.policies.base import floor_for, moment, moment_for
from adaptmix.solvers.allocation import allocate
from adaptmix.solvers.waterfill import share_bounds
from adaptmix.types import Domains, DomainStats, Weights


@dataclass(frozen=True)
class VarianceAware:
    """Sampling p ∝ π · w · v within bounds; the loss weights, and so the objective, stay.

    With stratified counts the gradient's variance is Σ (π w v)² / (B p), which this minimises. With
    multinomial ones it is [Σ (π w s)² / p − ‖Σ π w μ‖²] / B, minimised by p ∝ π · w · s. Alone it
    keeps w = 1; in a chain it takes the loss weights of the stage before.

    Args:
        lower: least share of a domain, in [0, 1/K]; None for one row per batch (see floor_for).
        upper: greatest share of a domain.
        batch_size: rows of a step's global batch; the controller fills it in when None.
        sampler: "stratified" or "multinomial"; the controller fills it in when None.

    Source:
        Salmani et al., arXiv:2511.06913, algorithm "VA"; bounds and the multinomial form are ours.

    Example:
        >>> domains = Domains(("quiet", "loud"), sizes=[100, 100])
        >>> policy = VarianceAware()
        >>> weights, _ = policy.update(DomainStats(grad_var=[1.0, 9.0]), policy.init(domains))
        >>> weights.sampling.tolist()
        [0.25, 0.75]
    """

    lower: float | None = None
    upper: float = 1.0
    batch_size: int | None = None
    sampler: str | None = None

    @property
    def requires(self) -> frozenset[str]:
        """The moment that fits the sampler."""
        return frozenset({moment_for(self.sampler)})

    def init(self, domains: Domains) -> dict[str, Any]:
        """Return the state: only the importance, for nothing is remembered."""
        floor_for(self.lower, len(domains), self.batch_size)
        moment_for(self.sampler)
        return {"importance": domains.importance}

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the quietest sampling for the objective as it was stated."""
        pi = state["importance"]
        return self._weights(pi, np.ones_like(pi), stats), state

    def refine(
        self, weights: Weights, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """Return the quietest sampling for the loss weights of ``weights``."""
        return self._weights(weights.importance, weights.loss, stats), state

    def _weights(self, importance: FloatArray, loss: FloatArray, stats: DomainStats) -> Weights:
        used = importance * loss
        scale = used * np.sqrt(moment(stats, self.sampler))
        floor = floor_for(self.lower, used.size, self.batch_size)
        # No variance anywhere: nothing to gain.
        scale = scale if scale.any() else used
        lower, upper = share_bounds(floor, self.upper, used.size)
        return Weights(allocate(scale, lower, upper), loss, importance)
