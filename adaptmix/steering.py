"""From statistics to weights: the policy of a run, its choice, its state and its checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from adaptmix import schema
from adaptmix.errors import MissingStatisticError, StateError
from adaptmix.identity import describe
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
        _check(self._declared)
        self._given = _written(policy)
        # As it is now: a policy that remembers something in itself is the same one later on.
        self.description = describe(self._declared)
        self._chosen = ""
        self._bound: Policy | None = None
        self._state: Any = None
        self._run: dict[str, Any] = {"sampler": sampler}
        self._pins = self._wanted = Pins(domains)
        self._free = self.proposed = Weights.proportional(domains.importance)

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
        """Ask for bounds on one domain's weights; None takes a bound off.

        They count from ``take_pins`` on, once all processes are known to have asked for the same.

        Raises:
            ValueError: bounds that no weights meet; nothing is changed then.
        """
        pins = self._wanted.with_bounds(domain, **bounds)
        self._pinned(pins)
        self._wanted = pins

    @property
    def wanted_pins(self) -> dict[str, Any]:
        """The bounds that were asked for last."""
        return self._wanted.state_dict()

    def take_pins(self) -> bool:
        """Let the bounds count that were asked for; returns whether there are new ones."""
        new = self._pins is not self._wanted
        if new:
            self.proposed = self._pinned(self._wanted)
            self._pins = self._wanted
        return new

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
            "chosen": self._chosen,
            "state": self._state,
            "sampling": self._free.sampling,
            "loss": self._free.loss,
            "pins": self._pins.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "steering") -> None:
        """Take over a saved policy's state; the policy must be the saved one.

        Raises:
            StateError: a damaged state.
        """
        weights = schema.array(len(self._domains), minimum=0.0)
        fields = {
            "chosen": schema.text,
            "state": schema.anything,
            "sampling": weights,
            "loss": weights,
            "pins": schema.mapping,
        }
        saved = schema.read(state, fields, name=name)
        choices = ("", _WITH_NOISE, _WITHOUT_NOISE) if self._declared is None else ("",)
        if saved["chosen"] not in choices:
            raise StateError(f"{name}.chosen must be one of {choices}; got {saved['chosen']!r}.")
        pins = Pins(self._domains)
        pins.load_state_dict(saved["pins"], name=f"{name}.pins")
        try:
            free = Weights(saved["sampling"], saved["loss"], self._domains.importance)
        except ValueError as error:
            raise StateError(f"{name}.sampling and {name}.loss must be weights: {error}") from error
        self._free, self._pins, self._wanted = free, pins, pins
        self.proposed = self._pinned(pins)
        self._chosen, self._state = saved["chosen"], saved["state"]
        if "horizon" in self._run:
            self.prepare(batch_size=self._run["batch_size"], horizon=self._run["horizon"])


def _written(policy: object) -> str:
    is_short = policy is None or isinstance(policy, str) or is_dataclass(policy)
    return repr(policy) if is_short else type(policy).__qualname__


def _check(policy: object) -> None:
    if policy is not None and (isinstance(policy, type) or not isinstance(policy, Policy)):
        raise TypeError(
            f"policy must be a name, or an object with requires, init and update; got {policy!r}."
        )
