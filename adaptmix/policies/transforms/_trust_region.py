"""Trust region: weights that move no further per update than a divergence allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray, number
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run
from adaptmix.policies.transforms._steps import start, step

# A proposal that takes (nearly) all of a domain's share away is (nearly) infinitely far. Steps
# towards one end here, where the divergence is still known to 1e-10 nats.
_ALMOST = 1.0 - 2.0**-20
# A share below the least normal number is rounding, and may go.
_NOTHING = float(np.finfo(np.float64).tiny)
# Newton's method squares its error, times 2**20 where a step almost takes a share away: after a
# step this small, relative, only rounding is left.
_SETTLED = 1e-11
# Steps this small have divergences that rounding hides.
_FAINT = 1e-16


@dataclass(frozen=True)
class TrustRegion:
    """The step on the line towards the proposed weights that a KL limit allows.

    With q the weights last returned and q̂ the proposed ones, returns q + t (q̂ − q) for the largest
    t ≤ 1 with KL(q ‖ q + t (q̂ − q)) ≤ limit, both for the shares p and for the weights α of the
    objective, a distribution over domains too. One t serves both, so that shares and the weights
    they fit stay together. Seen from q, no domain can lose all of its share at once, yet one that
    has none may get some. Before the first update the weights are those of a run without AdaptMix.

    Args:
        limit: nats per update, > 0; infinity lets every proposal pass.

    Raises:
        ValueError: a limit that is not positive.

    Source:
        Schulman et al., Trust Region Policy Optimization (2015), for the direction of the
        divergence; the default is measured in tests/benchmarks/bench_policies.py.

    Example:
        >>> from adaptmix.policies import Run
        >>> domains = Domains(("a", "b"), sizes=[100, 100])
        >>> region = TrustRegion()
        >>> proposal = Weights([0.9, 0.1], [1.0, 1.0], domains.importance)
        >>> state, stats = region.init(domains, Run()), DomainStats(count=[9, 9])
        >>> weights, _ = region.refine(proposal, stats, state)
        >>> weights.sampling.round(3).tolist()
        [0.57, 0.43]
    """

    limit: float = 0.01

    requires = frozenset[str]()

    def __post_init__(self) -> None:
        if self.limit != math.inf:
            number("limit", self.limit, minimum=5e-324)

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state: the weights that the run starts with."""
        return start(run.starting(domains))

    def refine(
        self, weights: Weights, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """Return weights within the limit, and remember them."""
        lines = (
            _Line(state["sampling"], weights.sampling),
            _Line(state["objective"], weights.objective),
        )
        part = 1.0
        # The longer one first: as far as it may go, the other one mostly may go too.
        for line in sorted(lines, key=lambda line: -line.whole):
            part = line.reach(self.limit, part)
        return step(state, weights, part)


class _Line:
    """The line q + t (q̂ − q) from shares to proposed ones, and D(t) = KL(q ‖ q + t (q̂ − q))."""

    def __init__(self, last: FloatArray, proposal: FloatArray) -> None:
        held = last >= _NOTHING
        self.fresh = 0.0  # what goes to domains that hold nothing
        if not held.all():
            self.fresh = float(proposal[~held].sum())
            last, proposal = last[held], proposal[held]
        self.share = last
        self.change = proposal / last - 1.0
        with np.errstate(divide="ignore"):  # a share that goes is infinitely far
            self.whole = self.divergence(1.0, self.change)

    def divergence(self, t: float, x: FloatArray) -> float:
        """Return D(t) = Σ q (x − log(1 + x)), x = t (q̂ / q − 1): no term < 0, so none cancel."""
        return float(self.share.dot(x - np.log1p(x))) + t * self.fresh

    def reach(self, limit: float, most: float) -> float:
        """Return the largest t ≤ most with D(t) ≤ limit."""
        whole = self.whole if most == 1.0 else self.divergence(most, most * self.change)
        if whole <= limit:
            return most
        most = min(most, _ALMOST)
        moved = self.share * self.change

        def nearer(t: float) -> float:
            """Return where the tangent at t meets the limit: as D is convex, not before D does."""
            x = t * self.change
            slope = float(moved.dot(x / (1.0 + x))) + self.fresh
            return min(max(t + (limit - self.divergence(t, x)) / slope, _FAINT), most)

        # D(t) is near t² Σ q (q̂ / q − 1)² / 2. Tangents lead beyond the root, and down to it.
        steepness = float(moved.dot(self.change)) / 2.0
        start = min(max(math.sqrt(limit / max(steepness, limit)), _FAINT), most)
        t, last = nearer(start), math.inf
        while t < last * (1.0 - _SETTLED):
            t, last = nearer(t), t
        return t
