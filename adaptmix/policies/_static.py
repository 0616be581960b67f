"""Weights that do not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptmix._checks import FloatArray, vector
from adaptmix._simplex import normalise
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run, Start


@dataclass(frozen=True)
class Static:
    """The same weights from the first batch on; by default those of a run without AdaptMix.

    Args:
        sampling: share of rows per domain, normalised to sum to one; importance when None.
        loss: loss weight per domain, normalised to Σ importance · loss = 1; ones when None.

    Raises:
        ValueError: at ``init``, a mapping that does not name exactly the domains.
    """

    sampling: Mapping[str, float] | None = None
    loss: Mapping[str, float] | None = None

    requires = frozenset[str]()

    def init(self, domains: Domains, run: Run) -> Start:
        """Return the weights, which hold from the first batch on, and again as arrays."""
        pi = domains.importance
        weights = Weights.proportional(pi)
        sampling, loss = weights.sampling, weights.loss
        if self.sampling is not None:
            sampling = normalise(_by_name("sampling", self.sampling, domains))
        if self.loss is not None:
            loss = normalise(_by_name("loss", self.loss, domains), importance=pi)
        state = {"sampling": sampling, "loss": loss, "importance": pi}
        return Start(Weights(**state), state)

    def update(
        self,
        stats: DomainStats,
        state: dict[str, Any],
    ) -> tuple[Weights, dict[str, Any]]:
        """Return the same weights again."""
        return Weights(**state), state


def _by_name(name: str, values: Mapping[str, float], domains: Domains) -> FloatArray:
    if set(values) != set(domains.names):
        raise ValueError(
            f"{name} must name exactly the domains {', '.join(domains.names)}; "
            f"got {', '.join(map(str, values))}."
        )
    return vector(name, [values[domain] for domain in domains.names], minimum=0.0)
