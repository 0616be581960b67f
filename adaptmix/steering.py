"""From statistics to weights: the policy of a run, its choice, its state and its checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from adaptmix.checkpoint import expect
from adaptmix.errors import MissingStatisticError
from adaptmix.pins import Bound, Pins
from adaptmix.policies import Policy, bind, named
from adaptmix.types import Domains, DomainStats, Weights

_log = logging.getLogger("adaptmix")
_WITH_NOISE, _WITHOUT_NOISE = "joint", "variance_aware"
_SUPPLIERS = {
    "noise": "controller.loss(..., noise=...) with terms of adaptmix.noise",
    "grad_var": "controller.watch(model)",
    "grad_sq": "controller.watch(model)",
    "grad_gram": "controller.watch(model)",
}


class Steering:
    """Holds the policy of a run and the weights it gives.

    Args:
        domains: of the mixture.
        policy: a policy, its name, or None to choose at the first update by what the run supplies.
        sampler: how the plan draws rows.

    Raises:
        TypeError: an object that is no policy.
        ValueError: an unknown name.
    """

    def __init__(self, domains: Domains, policy: Policy | str | None, *, sampler: str) -> None:
        self._domains = domains
        self._declared = named(policy) if isinstance(policy, str) else policy
        self._given = _description(policy)
        _check(self._declared)
        self._chosen = ""
        self._bound: Policy | None = None
        self._state: Any = None
        self._run: dict[str, Any] = {"sampler": sampler}
        self._pins = Pins(domains)
        self._free = self.proposed = Weights.proportional(domains.importance)

    @property
    def given(self) -> str:
        """The policy as the user wrote it."""
        return self._given

    @property
    def description(self) -> str:
        """What the user asked for, comparable between runs."""
        return _description(self._declared)

    def prepare(self, *, batch_size: int, horizon: int) -> None:
        """Fill in what a policy may ask of the run, and start its state."""
        self._run |= {"batch_size": batch_size, "horizon": horizon}
        if self._declared is not None:
            self._adopt(self._declared)
        elif self._chosen:
            self._adopt(named(self._chosen))

    def _adopt(self, policy: Policy) -> None:
        self._bound = bind(policy, **self._run)
        fresh = self._bound.init(self._domains)
        self._state = fresh if self._state is None else self._state

    def update(self, stats: DomainStats, *, measured: frozenset[str]) -> bool:
        """Let the policy propose weights; False while what it needs is measured but not known yet.

        Args:
            stats: running estimates.
            measured: names of the statistics that the run measures.

        Raises:
            MissingStatisticError: the policy needs one that it does not.
        """
        if self._bound is None:
            self._chosen = _WITH_NOISE if "noise" in measured else _WITHOUT_NOISE
            _log.info("policy=None: this run uses %r.", self._chosen)
            self._adopt(named(self._chosen))
        policy = self._policy
        missing = policy.requires - stats.supplied()
        for name in sorted(missing - measured):
            chosen = f", which chose {self._chosen!r}," if self._chosen else ""
            way_out = _SUPPLIERS.get(name, "a policy that does not need it")
            raise MissingStatisticError(
                f"policy={self._given}{chosen} needs the statistic {name!r}, which this run does "
                f"not supply. Use {way_out}."
            )
        if missing:
            return False
        self._free, self._state = policy.update(stats, self._state)
        self.proposed = self._pinned(self._pins)
        return True

    def pin(self, domain: int, **bounds: Bound | None) -> None:
        """Bound one domain's weights from now on; None takes a bound off.

        Raises:
            ValueError: bounds that no weights meet; nothing is changed then.
        """
        pins = self._pins.with_bounds(domain, **bounds)
        self.proposed = self._pinned(pins)
        self._pins = pins

    def _pinned(self, pins: Pins) -> Weights:
        return pins.apply(self._free) if pins.any else self._free

    @property
    def _policy(self) -> Policy:
        if self._bound is None:
            raise ValueError("loader() must be called before step(); no loader was made yet.")
        return self._bound

    @property
    def requires(self) -> frozenset[str]:
        """The statistics the policy reads; while it is to be chosen, those of either choice."""
        if self._bound is not None:
            return self._bound.requires
        choices = (_WITH_NOISE, _WITHOUT_NOISE) if self._declared is None else ()
        chosen = (bind(named(name), **self._run) for name in choices)
        return frozenset().union(*(policy.requires for policy in chosen))

    def state_dict(self) -> dict[str, Any]:
        """Return the policy's state and last weights."""
        return {
            "policy": self.description,
            "chosen": self._chosen,
            "state": self._state,
            "sampling": self._free.sampling,
            "loss": self._free.loss,
            "pins": self._pins.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved policy's state.

        Raises:
            StateError: it is of another policy.
        """
        expect(state, policy=self.description)
        self._chosen = str(state["chosen"])
        self._state = state["state"]
        importance = self._domains.importance
        self._free = Weights(state["sampling"], state["loss"], importance)
        self._pins.load_state_dict(state["pins"])
        self.proposed = self._pinned(self._pins)
        if "horizon" in self._run:
            self.prepare(batch_size=self._run["batch_size"], horizon=self._run["horizon"])


def _description(policy: object) -> str:
    is_written = policy is None or isinstance(policy, str) or is_dataclass(policy)
    return repr(policy) if is_written else type(policy).__qualname__


def _check(policy: object) -> None:
    if policy is not None and (isinstance(policy, type) or not isinstance(policy, Policy)):
        raise TypeError(
            f"policy must be a name, or an object with requires, init and update; got {policy!r}."
        )
