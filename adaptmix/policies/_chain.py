"""Policies made of stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from adaptmix._checks import FloatArray
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Policy, Preparation, Refinement, Run, Start, started

_MISPLACED = (
    "stages must be any that prepare statistics (with init and prepare, as Shrink), then one "
    "policy (with init and update), then any that refine its weights (with init and refine, as "
    "VarianceAware and Smooth); got {stage!r} {side} the policy. Put it where it belongs."
)


@dataclass(frozen=True)
class Chain:
    """Preparations of the statistics, a policy, and refinements of its weights, in this order.

    Every later stage sees the prepared statistics. Each refinement starts from the weights of the
    stage before it.
    """

    before: tuple[Preparation, ...]
    first: Policy
    then: tuple[Refinement, ...]

    @property
    def requires(self) -> frozenset[str]:
        """All that any stage reads."""
        return frozenset[str]().union(*(stage.requires for stage in self._stages))

    @property
    def auxiliary(self) -> bool:
        """Whether its policy can weight domains of importance 0."""
        return bool(getattr(self.first, "auxiliary", False))

    def figures(self, state: tuple[Any, ...]) -> dict[str, FloatArray]:
        """Return what its policy believes."""
        tell = getattr(self.first, "figures", None)
        return {} if tell is None else dict(tell(state[len(self.before)]))

    @property
    def _stages(self) -> tuple[Preparation | Policy | Refinement, ...]:
        return (*self.before, self.first, *self.then)

    def init(self, domains: Domains, run: Run) -> Start:
        """Return the weights that its policy starts with, and the stages' states, in order."""
        before = [stage.init(domains, run) for stage in self.before]
        weights, state = started(self.first, domains, run)
        run = replace(run, start=weights)
        then = [stage.init(domains, run) for stage in self.then]
        return Start(weights, (*before, state, *then))

    def update(self, stats: DomainStats, state: tuple[Any, ...]) -> tuple[Weights, tuple[Any, ...]]:
        """Return what the last stage makes of it."""
        states = list(state)
        middle = len(self.before)
        for i, preparation in enumerate(self.before):
            stats, states[i] = preparation.prepare(stats, states[i])
        weights, states[middle] = self.first.update(stats, states[middle])
        for i, refinement in enumerate(self.then, start=middle + 1):
            weights, states[i] = refinement.refine(weights, stats, states[i])
        return weights, tuple(states)


def chain(*stages: Preparation | Policy | Refinement) -> Chain:
    """Compose a policy with what prepares its statistics and refines its weights.

    Args:
        stages: any number of preparations, one policy, any number of refinements.

    Raises:
        TypeError: no policy, a stage before it that cannot prepare, or one after it that cannot
            refine.

    Example:
        >>> from adaptmix.policies import FGLS, Shrink, Smooth, VarianceAware
        >>> policy = chain(Shrink(), FGLS(), VarianceAware(), Smooth(0.5))
        >>> sorted(policy.requires)
        ['grad_sq', 'noise']
    """
    before: list[Preparation] = []
    first: Policy | None = None
    then: list[Refinement] = []
    for stage in stages:
        if isinstance(stage, type):  # a class has all the members, too
            raise TypeError(f"stages must be objects; got {stage!r}. Write {stage.__name__}().")
        if first is None and isinstance(stage, Policy):
            first = stage
        elif first is None and isinstance(stage, Preparation):
            before.append(stage)
        elif first is not None and isinstance(stage, Refinement):
            then.append(stage)
        else:
            raise TypeError(
                _MISPLACED.format(stage=stage, side="after" if first is not None else "before")
            )
    if first is None:
        raise TypeError(f"stages must hold a policy, such as VarianceAware(); got {stages!r}.")
    return Chain(tuple(before), first, tuple(then))
