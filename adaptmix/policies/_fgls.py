"""One-shot FGLS: loss weights against label noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run
from adaptmix.policies._moments import pooled
from adaptmix.solvers import fgls_weights

SIZES_CAUTION = (
    "use_sizes=True turns domains with few rows down, however much they matter; it is right only "
    "where all domains share one optimum."
)


@dataclass(frozen=True)
class FGLS:
    """Loss weights w ∝ n / (π σ²), sampling as the importance.

    In the linear model with noise variance σ² per domain, weighting each sample by 1/σ² is the
    best linear unbiased estimator (Aitken). Feasible, because σ² is estimated; one-shot, because
    that happens within the one training run.

    Noise must be in one unit. If targets are in different units, such as kilometres and metres, the
    domain with the large numbers gets nearly no weight; on tasks that were tried, the error of the
    raw objective rose by 67 %. Standardise the targets of each domain first, or supply dispersions
    (``adaptmix.noise``).

    Args:
        use_sizes: whether n is the domain's number of rows. Small domains then get little weight,
            whatever their importance, which is right only where all domains share one optimum. By
            default n ∝ π, so that equal noise gives loss weights of exactly 1.

    Source:
        Salmani et al., arXiv:2511.06913, algorithm "One-shot FGLS".
    """

    use_sizes: bool = False

    requires = frozenset({"noise"})

    @property
    def caution(self) -> str:
        """What to know before choosing it."""
        unit = (
            "loss weights answer to noise, so every domain's targets must be in one unit; a domain "
            "with larger numbers would be all but switched off."
        )
        return f"{unit} {SIZES_CAUTION}" if self.use_sizes else unit

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state: importance and the sizes to go by."""
        sizes = domains.sizes if self.use_sizes else domains.importance
        return {"importance": domains.importance, "sizes": sizes}

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the weights for the noise estimated so far."""
        pi = state["importance"]
        noise = pooled(stats.noise, stats.noise_count)
        loss = fgls_weights(noise, importance=pi, sizes=state["sizes"] if self.use_sizes else None)
        return Weights(pi, loss, pi), state
