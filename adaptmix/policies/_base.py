"""What a policy is, and what every policy needs."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

from adaptmix._checks import choice
from adaptmix._types import COUNTS, Domains, DomainStats, Weights

State = Any
"""A policy's memory: numbers, strings, NumPy arrays, and dicts, lists and tuples of them."""


@runtime_checkable
class Policy(Protocol):
    """Weights from statistics, as a pure function of its arguments.

    Any object with these three members works as ``Controller(policy=...)``.
    """

    @property
    def requires(self) -> frozenset[str]:
        """The DomainStats fields it reads; a run that does not supply one is an error."""
        ...

    def init(self, domains: Domains) -> State:
        """Return the state before the first update."""
        ...

    def update(self, stats: DomainStats, state: State) -> tuple[Weights, State]:
        """Return the weights for these statistics, and the next state."""
        ...


@runtime_checkable
class Refinement(Protocol):
    """A stage of a chain that starts from the weights of the stage before it."""

    @property
    def requires(self) -> frozenset[str]:
        """The DomainStats fields it reads."""
        ...

    def init(self, domains: Domains) -> State:
        """Return the state before the first update."""
        ...

    def refine(self, weights: Weights, stats: DomainStats, state: State) -> tuple[Weights, State]:
        """Return weights made from ``weights``, and the next state."""
        ...


@runtime_checkable
class Preparation(Protocol):
    """A stage of a chain that changes statistics before a policy sees them."""

    @property
    def requires(self) -> frozenset[str]:
        """The DomainStats fields it cannot do without."""
        ...

    def init(self, domains: Domains) -> State:
        """Return the state before the first update."""
        ...

    def prepare(self, stats: DomainStats, state: State) -> tuple[DomainStats, State]:
        """Return statistics made from ``stats``, and the next state."""
        ...


def bind(policy: Any, **run: Any) -> Any:
    """Fill in what a policy or its parts left as None with what is known of the run.

    Args:
        policy: a policy; one that is no dataclass is returned as it is.
        run: ``batch_size``, rows of a step's global batch; ``horizon``, optimizer steps of the
            whole run; ``sampler``, "stratified" or "multinomial".
    """
    if isinstance(policy, tuple):
        return tuple(bind(part, **run) for part in policy)
    if not is_dataclass(policy) or isinstance(policy, type):
        return policy
    changes: dict[str, Any] = {}
    for field in fields(policy):
        value = getattr(policy, field.name)
        if value is None and field.name in run:
            changes[field.name] = run[field.name]
        elif isinstance(value, tuple) or is_dataclass(value):
            changes[field.name] = bind(value, **run)
    return replace(policy, **changes) if changes else policy


def sampler_of(sampler: str | None) -> str:
    """Return how rows are drawn, "stratified" when None.

    Raises:
        ValueError: an unknown sampler.
    """
    return choice("sampler", sampler or "stratified", COUNTS)


def cautions(policy: Any) -> list[str]:
    """Return what the parts of a policy have to say to whoever chooses them.

    A policy says it in an attribute ``caution``; empty when there is nothing to say.
    """
    if isinstance(policy, tuple):
        return [caution for part in policy for caution in cautions(part)]
    if not is_dataclass(policy) or isinstance(policy, type):
        return []
    own = getattr(policy, "caution", "")
    parts = [getattr(policy, field.name) for field in fields(policy)]
    return [own] * bool(own) + [caution for part in parts for caution in cautions(part)]
