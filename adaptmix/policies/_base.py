"""What a policy is, and what every policy needs."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from adaptmix._checks import choice, integer
from adaptmix._types import COUNTS, Domains, DomainStats, Weights

State = Any
"""A policy's memory: numbers, strings, NumPy arrays, and dicts, lists and tuples of them."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a policy may ask of the run that it is for.

    Args:
        batch_size: rows of a step's global batch; None stands for very many.
        horizon: optimizer steps of the whole run; None when not known.
        counts: "stratified" or "multinomial", how a step's rows are divided among domains.
        start: weights of the first step, from which refinements move on; None stands for those of
            a run without AdaptMix.

    Raises:
        TypeError: a number that is no integer.
        ValueError: a number below 1, or another ``counts``.
    """

    batch_size: int | None = None
    horizon: int | None = None
    counts: str = "stratified"
    start: Weights | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "horizon"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), minimum=1)
        choice("counts", self.counts, COUNTS)

    def starting(self, domains: Domains) -> Weights:
        """Return the weights of the first step."""
        return self.start or Weights.proportional(domains.importance)


class Start(NamedTuple):
    """What ``init`` may return in place of a state: the weights to start with, and the state.

    They hold from the first batch on. A policy that returns a state alone starts with the weights
    of a run without AdaptMix: sampling by importance, and loss weights of 1.
    """

    weights: Weights
    state: State


@runtime_checkable
class Policy(Protocol):
    """Weights from statistics, as a pure function of its arguments.

    Any object with these three members works as ``Controller(policy=...)``.
    """

    @property
    def requires(self) -> frozenset[str]:
        """The DomainStats fields it reads; a run that does not supply one is an error.

        A policy that can weight domains of importance 0 has an attribute ``auxiliary`` that is
        true; any other is refused where there are such domains.
        """
        ...

    def init(self, domains: Domains, run: Run) -> State | Start:
        """Return the state before the first update, or a ``Start`` with the first weights, too."""
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

    def init(self, domains: Domains, run: Run) -> State:
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

    def init(self, domains: Domains, run: Run) -> State:
        """Return the state before the first update."""
        ...

    def prepare(self, stats: DomainStats, state: State) -> tuple[DomainStats, State]:
        """Return statistics made from ``stats``, and the next state."""
        ...


def started(policy: Policy, domains: Domains, run: Run) -> Start:
    """Return the weights that a policy starts with, and its state."""
    state = policy.init(domains, run)
    return state if isinstance(state, Start) else Start(run.starting(domains), state)


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
