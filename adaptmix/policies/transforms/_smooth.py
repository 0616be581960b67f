"""Small steps: weights that go only part of the way at each update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptmix._checks import number
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run
from adaptmix.policies.transforms._steps import start, step


@dataclass(frozen=True)
class Smooth:
    """A convex step from the weights last returned towards the proposed ones.

    p ← p + rate · (p̂ − p), and the same for w, which keeps Σ p = 1 and Σ π w = 1. Before the first
    update they are those that the run starts with. After t updates with the same proposal,
    (1 − rate)ᵗ of the distance is left.

    Args:
        rate: part of the way gone at each update, in (0, 1]; at 1 the proposal passes unchanged.

    Raises:
        ValueError: a rate out of its range.

    Source:
        Ours; the default is measured in tests/benchmarks/bench_policies.py.

    Example:
        >>> from adaptmix.policies import Run
        >>> domains = Domains(("a", "b"), sizes=[100, 100])
        >>> smooth = Smooth(rate=0.5)
        >>> proposal = Weights([0.9, 0.1], [1.0, 1.0], domains.importance)
        >>> state, stats = smooth.init(domains, Run()), DomainStats(count=[9, 9])
        >>> weights, _ = smooth.refine(proposal, stats, state)
        >>> weights.sampling.tolist()
        [0.7, 0.3]
    """

    rate: float = 0.5

    requires = frozenset[str]()

    def __post_init__(self) -> None:
        # The least positive float stands for "> 0" beside a closed upper end.
        number("rate", self.rate, minimum=5e-324, maximum=1.0)

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state: the weights that the run starts with."""
        return start(run.starting(domains))

    def refine(
        self, weights: Weights, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """Return weights part of the way to ``weights``, and remember them."""
        return step(state, weights, self.rate)
