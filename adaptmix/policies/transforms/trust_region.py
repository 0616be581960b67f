"""Trust region: weights that move no further per update than a divergence allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from adaptmix.checks import FloatArray, number
from adaptmix.policies.transforms.steps import start, step
from adaptmix.types import Domains, DomainStats, Weights

# A proposal that takes (nearly) all of a domain's share away is (nearly) infinitely far. Steps
# towards one end here, where the divergence is still known to 1e-10 nats.
_ALMOST = 1.0 - 2.0**-20
# A share below the least normal number is rounding, and may go.
_NOTHING = float(np.finfo(np.float64).tiny)
# Larger than any finite divergence of shares, and not so large that it spoils the search.
_INFINITE = 1e4


@dataclass(frozen=True)
class TrustRegion:
    """The step on the line towards the proposed weights that a KL limit allows.

    With q the weights last returned and q̂ the proposed ones, returns q + t (q̂ − q) for the largest
    t ≤ 1 with KL(q ‖ q + t (q̂ − q)) ≤ limit, both for the shares p and for u = π w, which is a
    distribution over domains too. One t serves both, so that shares and the loss weights they fit
    stay together. Seen from q, no domain can lose all of its share at once, yet one that has none
    may get some. Before the first update the weights are those of a run without adaptmix.

    Args:
        limit: nats per update, > 0; infinity lets every proposal pass.

    Raises:
        ValueError: a limit that is not positive.

    Source:
        Schulman et al., Trust Region Policy Optimization (2015), for the direction of the
        divergence; the default is measured in tests/benchmarks/bench_policies.py.

    Example:
        >>> domains = Domains(("a", "b"), sizes=[100, 100])
        >>> region = TrustRegion()
        >>> proposal = Weights([0.9, 0.1], [1.0, 1.0], domains.importance)
        >>> weights, _ = region.refine(proposal, DomainStats(count=[9, 9]), region.init(domains))
        >>> weights.sampling.round(3).tolist()
        [0.57, 0.43]
    """

    limit: float = 0.01

    requires = frozenset[str]()

    def __post_init__(self) -> None:
        if self.limit != math.inf:
            number("limit", self.limit, minimum=5e-324)

    def init(self, domains: Domains) -> dict[str, Any]:
        """Return the state: the weights of a run without adaptmix."""
        return start(domains.importance)

    def refine(
        self, weights: Weights, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """Return weights within the limit, and remember them."""
        pi = weights.importance
        last = np.stack((state["sampling"], pi * state["loss"]))
        proposal = np.stack((weights.sampling, pi * weights.loss))
        return step(state, weights, self._part(last, proposal))

    def _part(self, last: FloatArray, proposal: FloatArray) -> float:
        """Return the largest t that the limit allows all of these shares, (2, K)."""
        if self.limit == math.inf or np.array_equal(last, proposal):
            return 1.0
        held = last >= _NOTHING
        share = np.where(held, last, 0.0)
        change = np.divide(proposal, last, out=np.ones_like(last), where=held) - 1.0
        fresh = np.where(held, 0.0, proposal).sum(axis=1)

        def excess(t: float) -> float:
            # KL = Σ q (x − log(1 + x)), x = t (q̂ / q − 1): no term is negative, so none cancel.
            x = t * change
            divergence = (share * (x - np.log1p(x))).sum(axis=1) + t * fresh
            # It grows like t²: its root is nearly straight, and found in a few steps.
            return math.sqrt(min(divergence.max(), _INFINITE)) - math.sqrt(self.limit)

        with np.errstate(divide="ignore"):  # a share that goes is infinitely far
            for t in (1.0, _ALMOST):
                if excess(t) <= 0.0:
                    return t
        return float(brentq(excess, 0.0, _ALMOST, xtol=1e-15, rtol=1e-14))
