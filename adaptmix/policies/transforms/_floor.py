"""Floor: every domain keeps a share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptmix._checks import lower_share
from adaptmix._simplex import mix_floor
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run
from adaptmix.policies._least_variance import LEAST_SHARE


@dataclass(frozen=True)
class Floor:
    """Shares mixed with the uniform distribution until none is below the floor.

    p ← (1 − ε) p + ε / K with the least ε ≥ 0 for which min p ≥ lower: shares that keep the floor
    pass unchanged. Loss weights, and so the objective, stay.

    Args:
        lower: least share of a domain, in [0, 1/K]; a tenth of an equal share when None.

    Raises:
        ValueError: at ``init``, a floor that K domains cannot keep.

    Source:
        Ours: importance sampling with a defensive mixture, Hesterberg (1995).

    Example:
        >>> from adaptmix.policies import Run
        >>> domains = Domains(("a", "b"), sizes=[100, 100])
        >>> floor = Floor(lower=0.2)
        >>> proposal = Weights([0.9, 0.1], [1.0, 1.0], domains.importance)
        >>> state, stats = floor.init(domains, Run()), DomainStats(count=[9, 9])
        >>> weights, _ = floor.refine(proposal, stats, state)
        >>> weights.sampling.round(3).tolist()
        [0.8, 0.2]
    """

    lower: float | None = None

    requires = frozenset[str]()

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state, in which nothing is remembered."""
        self._least(len(domains))
        return {}

    def refine(
        self, weights: Weights, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """Return the same weights with shares that keep the floor."""
        K = weights.sampling.size
        lower = self._least(K)
        least = float(weights.sampling.min())
        if least >= lower:
            return weights, state
        # (1 − K·δ) · least + δ = lower. Rounding must not take δ beyond what mix_floor allows.
        delta = min((lower - least) / (1.0 - K * least), 1.0 / K)
        return weights.replaced(mix_floor(weights.sampling, lower=delta), weights.objective), state

    def _least(self, num_domains: int) -> float:
        if self.lower is None:
            return 0.1 / num_domains
        return max(lower_share("lower", self.lower, num_domains), LEAST_SHARE / num_domains)
