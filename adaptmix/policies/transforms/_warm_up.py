"""Warm-up: weights stay as they are for the first updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptmix._checks import integer
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run
from adaptmix.policies.transforms._steps import start, step


@dataclass(frozen=True)
class WarmUp:
    """The weights that the run starts with for the first updates, then the proposed ones.

    With ``linear=True`` the weights move there in equal steps: at update t, from 0, they are
    t / updates of the way.

    Args:
        updates: number of updates, at least 0, before a proposal passes unchanged.
        linear: whether to go there gradually.

    Raises:
        TypeError: updates that are no integer.
        ValueError: negative updates.

    Source:
        Ours.

    Example:
        >>> from adaptmix.policies import Run
        >>> domains = Domains(("a", "b"), sizes=[100, 100])
        >>> warm_up = WarmUp(1)
        >>> state, stats = warm_up.init(domains, Run()), DomainStats(count=[9, 9])
        >>> proposal = Weights([0.9, 0.1], [1.0, 1.0], domains.importance)
        >>> first, state = warm_up.refine(proposal, stats, state)
        >>> second, state = warm_up.refine(proposal, stats, state)
        >>> first.sampling.tolist(), second.sampling.tolist()
        ([0.5, 0.5], [0.9, 0.1])
    """

    updates: int
    linear: bool = False

    requires = frozenset[str]()

    def __post_init__(self) -> None:
        integer("updates", self.updates, minimum=0)

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state: no update made, and the weights that the run starts with."""
        return {"made": 0, "start": start(run.starting(domains))}

    def refine(
        self, weights: Weights, stats: DomainStats, state: dict[str, Any]
    ) -> tuple[Weights, dict[str, Any]]:
        """Return the weights that this update may have, and count it."""
        made = int(state["made"])
        if made >= self.updates:
            return weights, state
        part = made / self.updates if self.linear else 0.0
        held, _ = step(state["start"], weights, part)
        return held, {**state, "made": made + 1}
