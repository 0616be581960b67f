"""From statistics to weights: the policy of a run, its choice, its state and its checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._schedule import Course
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.errors import MissingStatisticError, StateError
from adaptmix.policies import Policy, Run
from adaptmix.policies._base import cautions, started
from adaptmix.policies._bounds import Bound, Pins
from adaptmix.policies._names import named, with_shrinkage
from adaptmix.state import _checkpoint as checkpoint
from adaptmix.state import _schema as schema
from adaptmix.state._identity import describe

_log = logging.getLogger("adaptmix")
_SUPPLIERS = {
    "noise": "controller.loss(..., noise=...) with terms of adaptmix.noise, or "
    "controller.record_noise before the first loss",
    "grad_var": "controller.watch(model)",
    "grad_sq": "controller.watch(model)",
    "grad_gram": "controller.watch(model)",
}


class Steering:
    """Holds the policy of a run and the weights it gives.

    Args:
        domains: of the mixture.
        policy: a policy or its name.
        sampler: how the plan draws rows.
        course: what schedules make of its weights; nothing when None.

    Raises:
        TypeError: an object that is no policy.
        ValueError: an unknown name.
    """

    def __init__(
        self,
        domains: Domains,
        policy: Policy | str,
        *,
        sampler: str,
        course: Course | None = None,
    ) -> None:
        self._domains = domains
        self._policy = _chosen(policy)
        self._given = _written(policy)
        self._check_auxiliary()
        # As it is now: a policy that remembers something in itself is the same one later on.
        self.description = describe(self._policy)
        for caution in cautions(self._policy):
            _log.warning("policy=%s: %s", self._given, caution)
        self._state: Any = None
        self._fresh, self._anew = True, False
        self._run: Run | None = None
        self._counts = sampler
        self._course = Course(domains.names, None, None) if course is None else course
        self._pins = self._wanted = Pins(domains)
        self._free = Weights.proportional(domains.importance)
        self.proposed = self._pinned(self._pins)

    @property
    def given(self) -> str:
        """The policy as the user wrote it."""
        return self._given

    def prepare(self, *, batch_size: int, horizon: int) -> bool:
        """Start the policy's state for a run; returns whether it names weights to start with.

        Args:
            batch_size: rows of a step's global batch.
            horizon: optimizer steps of the whole run.

        Raises:
            TypeError: a state, or an ``init``, that is none.
            ValueError: the policy, or a schedule of shares, does not fit the run.
        """
        self._run = Run(batch_size, horizon, self._counts)
        fresh = started(self._policy, self._domains, self._run)
        self._check_state(fresh.state)
        self._check_importance(fresh.weights)
        if self._anew:
            self._anew, self._state = False, fresh.state
        if begins := self._fresh:
            self._state, self._free = fresh.state, fresh.weights
            self.proposed = self._pinned(self._pins)
        self._course.check(self.proposed, horizon=horizon)
        return begins

    def begin_anew(self) -> None:
        """Let the policy begin with a state of its own, and with its own weights if it has any.

        A policy that reads statistics goes on from the weights in force.
        """
        self._fresh, self._anew = not self._policy.requires, True
        if self._run is not None:
            self.prepare(batch_size=self._run.batch_size or 1, horizon=self._run.horizon or 1)

    def _check_state(self, state: Any) -> None:
        """Refuse a state that no checkpoint could hold, before anything is trained."""
        try:
            checkpoint.encode(state)
        except TypeError as error:
            raise TypeError(
                f"policy={self._given} must keep a state that checkpoints can hold; init() "
                f"returned another one: {error}"
            ) from error

    def update(self, stats: DomainStats, *, measured: frozenset[str]) -> bool:
        """Let the policy propose weights; False while what it needs is measured but not known yet.

        Args:
            stats: running estimates.
            measured: names of the statistics that the run measures.

        Raises:
            MissingStatisticError: the policy needs one that it does not.
            ValueError: the policy returned another importance than the run's.
        """
        policy = self._policy
        if self._run is None:
            raise ValueError("loader() must be called before step(); no loader was made yet.")
        missing = policy.requires - stats.supplied()
        self._check_measured(missing - measured)
        if missing:
            return False
        free, self._state = policy.update(stats, self._state)
        self._fresh = False
        self._check_importance(free)
        self._free = free
        self.proposed = self._pinned(self._pins)
        return True

    def check_supplied(self, measured: frozenset[str]) -> None:
        """Check that a run that begins measures what the policy needs.

        Args:
            measured: as for ``update``.

        Raises:
            MissingStatisticError: it does not.
        """
        self._check_measured(self.requires - measured)

    def _check_measured(self, missing: frozenset[str]) -> None:
        for name in sorted(missing):
            way_out = _SUPPLIERS.get(name, "a policy that does not need it")
            raise MissingStatisticError(
                f"policy={self._given} needs the statistic {name!r}, which this run does "
                f"not supply. Use {way_out}."
            )

    def _check_auxiliary(self) -> None:
        """Refuse auxiliary domains where the policy would never draw them."""
        names = self._domains.auxiliary
        if names and not getattr(self._policy, "auxiliary", False):
            raise ValueError(
                f"importance must be > 0 for every domain with policy={self._given}, which weights "
                f"domains by how much they count; got 0 for {', '.join(map(repr, names[:3]))}. Use "
                'policy="transfer", which trains on them as far as they help those that count, or '
                "leave them out."
            )

    def _check_importance(self, weights: Weights) -> None:
        """Refuse weights of another objective: multipliers would follow it without a word."""
        given, own = weights.importance, self._domains.importance
        if given.shape != own.shape or not np.allclose(given, own, rtol=1e-6, atol=0.0):
            raise ValueError(
                f"policy={self._given} must return weights with the importance of the run, "
                f"{own.round(6).tolist()}; got {given.round(6).tolist()}. Return "
                "Weights(sampling, loss, domains.importance); what a domain counts beyond its "
                "importance goes into loss."
            )

    def pin(self, domain: int, **bounds: Bound | None) -> None:
        """Ask for bounds on one domain's weights; None takes a bound off.

        They count from ``take_pins`` on, once all processes are known to have asked for the same.

        Raises:
            ValueError: bounds that no weights meet; nothing is changed then.
        """
        if self._course and bounds.get("sampling") is not None:
            raise ValueError(
                "sampling must not be pinned where a Schedule changes shares; got "
                f"{bounds['sampling']!r}. Give the share in Controller(sampling=Schedule(...))."
            )
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
        weights, shares = pins.apply(self._free) if pins.any else self._free, self._course.shares
        if shares is None:
            return weights
        return Weights(shares, None, weights.importance, objective=weights.objective)

    @property
    def requires(self) -> frozenset[str]:
        """The statistics the policy reads."""
        return self._policy.requires

    @property
    def figures(self) -> dict[str, FloatArray]:
        """What the policy believes of each domain, (K,) by name; nothing where it tells nothing."""
        tell = getattr(self._policy, "figures", None)
        return {} if tell is None or self._state is None else dict(tell(self._state))

    def state_dict(self) -> dict[str, Any]:
        """Return the policy's state and last weights."""
        return {
            "state": self._state,
            "sampling": self._free.sampling,
            "objective": self._free.objective,
            "pins": self._pins.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "steering") -> None:
        """Take over a saved policy's state; the policy must be the saved one.

        Raises:
            StateError: a damaged state.
        """
        weights = schema.array(len(self._domains), minimum=0.0)
        fields = {
            "state": schema.anything,
            "sampling": weights,
            "objective": weights,
            "pins": schema.mapping,
        }
        saved = schema.read(state, fields, name=name)
        pins = Pins(self._domains)
        pins.load_state_dict(saved["pins"], name=f"{name}.pins")
        try:
            free = Weights(
                saved["sampling"],
                None,
                self._domains.importance,
                objective=saved["objective"],
            )
        except ValueError as error:
            raise StateError(
                f"{name}.sampling and {name}.objective must be weights: {error}"
            ) from error
        self._free = free
        try:
            self.proposed = self._pinned(pins)
        except ValueError as error:  # as with another mixture
            raise StateError(
                f"{name}.pins must leave a share for every domain that counts: {error} Take pins "
                "off with controller.pin(domain) before the state is saved."
            ) from error
        self._pins = self._wanted = pins
        self._state, self._fresh = saved["state"], False


def requirements(policy: Policy | str) -> frozenset[str]:
    """Return the statistics that a policy, or the one of that name, reads.

    Raises:
        TypeError: an object that is no policy.
        ValueError: an unknown name.
    """
    return _chosen(policy).requires


def _chosen(policy: Policy | str) -> Policy:
    if isinstance(policy, str):
        return named(policy)
    _check(policy)
    return with_shrinkage(policy)


def _written(policy: object) -> str:
    is_short = isinstance(policy, str) or is_dataclass(policy)
    return repr(policy) if is_short else type(policy).__qualname__


def _check(policy: object) -> None:
    if isinstance(policy, type) or not isinstance(policy, Policy):
        raise TypeError(
            f"policy must be a name, or an object with requires, init and update; got {policy!r}."
        )
