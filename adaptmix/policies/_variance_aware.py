"""Variance-aware sampling (VA): the shares of least gradient variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run
from adaptmix.policies._least_variance import check_bounds, least_variance_shares


@dataclass(frozen=True)
class VarianceAware:
    """Sampling p ∝ π · w · v within bounds; the loss weights, and so the objective, stay.

    With stratified counts and b = N p rows of a domain in a step, the gradient's variance is
    Σ (π w v)² / b over domains with b ≥ 1. A domain with b < 1 is present or absent: it adds
    (π w)² (s² / b − ‖μ‖²), s² = v² + ‖μ‖² (``solvers.neyman_shares``). With multinomial counts
    the variance is [Σ (π w s)² / p − ‖Σ π w μ‖²] / N, least for p ∝ π · w · s. Alone, the policy
    keeps w = 1. In a chain it takes the loss weights of the stage before.

    The predicted variance is never above that of proportional sampling, p = π. The shares stay at
    p = π unless the predicted gain is above what noise alone would predict in 1 of 20 decisions
    (``policies/_least_variance.py``). With unit "token", p are shares of tokens, while counts,
    bounds and the variance refer to rows, of which a step has a fixed number.

    Args:
        lower: least share of a step's rows, in [0, 1/K]. When None, each domain keeps a part of its
            proportional share, so that its estimates stay up to date: a tenth where that costs
            next to nothing, less elsewhere.
        upper: greatest share of a step's rows.

    Source:
        Salmani et al., arXiv:2511.06913, algorithm "VA"; bounds, small counts and the multinomial
        form are ours.

    Example:
        >>> from adaptmix.policies import Run
        >>> domains = Domains(("quiet", "loud"), sizes=[100, 100])
        >>> policy = VarianceAware()
        >>> state = policy.init(domains, Run())
        >>> weights, _ = policy.update(DomainStats(grad_var=[1.0, 9.0]), state)
        >>> weights.sampling.tolist()
        [0.25, 0.75]
    """

    lower: float | None = None
    upper: float = 1.0

    @property
    def requires(self) -> frozenset[str]:
        """The second moment, which single rows suffice for; the variance is used where known."""
        return frozenset({"grad_sq"})

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state: what is known of the run, for nothing is remembered."""
        check_bounds(self.lower, self.upper, len(domains))
        return {
            "importance": domains.importance,
            "batch_size": run.batch_size,
            "counts": run.counts,
        }

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the sampling of least variance for the objective as it was stated."""
        pi = state["importance"]
        return self._weights(pi, np.ones_like(pi), stats, state), state

    def refine(
        self, weights: Weights, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """Return the sampling of least variance for the objective of ``weights``."""
        if weights.importance.all():
            return self._weights(weights.importance, weights.loss, stats, state), state
        # Domains of importance 0 have no loss weight, but a weight in the objective.
        plain, counted = weights.plain, weights.objective
        loss = np.divide(counted, plain, out=np.zeros_like(plain), where=plain > 0.0)
        return weights.replaced(self._shares(plain, loss, stats, state), counted), state

    def _weights(
        self, importance: FloatArray, loss: FloatArray, stats: DomainStats, state: dict[str, Any]
    ) -> Weights:
        return Weights(self._shares(importance, loss, stats, state), loss, importance)

    def _shares(
        self, importance: FloatArray, loss: FloatArray, stats: DomainStats, state: dict[str, Any]
    ) -> FloatArray:
        return least_variance_shares(
            importance,
            loss,
            stats,
            lower=self.lower,
            upper=self.upper,
            rows=state["batch_size"],
            sampler=state["counts"],
        )
