"""Policies made of stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptmix.policies.base import Policy, Refinement
from adaptmix.types import Domains, DomainStats, Weights


@dataclass(frozen=True)
class Chain:
    """A policy followed by refinements, each starting from the weights before it."""

    first: Policy
    then: tuple[Refinement, ...]

    @property
    def requires(self) -> frozenset[str]:
        """All that any stage reads."""
        return self.first.requires.union(*(stage.requires for stage in self.then))

    def init(self, domains: Domains) -> tuple[Any, ...]:
        """Return the stages' states."""
        return (self.first.init(domains), *(stage.init(domains) for stage in self.then))

    def update(self, stats: DomainStats, state: tuple[Any, ...]) -> tuple[Weights, tuple[Any, ...]]:
        """Return what the last stage makes of it."""
        weights, new = self.first.update(stats, state[0])
        states = [new]
        for stage, old in zip(self.then, state[1:], strict=True):
            weights, new = stage.refine(weights, stats, old)
            states.append(new)
        return weights, tuple(states)


def chain(first: Policy, *then: Refinement) -> Chain:
    """Compose a policy with refinements, such as ``chain(FGLS(), VarianceAware())``.

    Args:
        first: gives the first weights.
        then: stages with a ``refine`` method, in order.

    Raises:
        TypeError: a first stage that is no policy, or a later one that cannot refine.
    """
    if not isinstance(first, Policy):
        raise TypeError(f"first must have requires, init and update; got {first!r}.")
    for stage in then:
        if not isinstance(stage, Refinement):
            raise TypeError(
                f"then must be stages with requires, init and refine; got {stage!r}. "
                "Only VarianceAware and transforms can follow another stage."
            )
    return Chain(first, then)
