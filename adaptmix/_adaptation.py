"""From statistics to the weights in force: the policy proposes, the plan and the loss follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adaptmix._checks import FloatArray
from adaptmix._settings import Settings
from adaptmix._simplex import normalise
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix._warn_once import WarnOnce
from adaptmix.data._elsewhere import PublishedShares
from adaptmix.data._plan import Plan
from adaptmix.errors import (
    MissingStatisticError,
    MissingStatisticWarning,
    TooFewRowsWarning,
)
from adaptmix.monitoring._alarms import Guards
from adaptmix.policies._runner import Steering
from adaptmix.statistics import Measurements


class Adaptation:
    """Lets the policy propose weights, and publishes them where the run adapts.

    Args:
        domains: of the mixture.
        settings: of the run.
        steering: holds the policy.
        measurements: what it goes by.
        guards: look at what it proposes.
        warn: of the run.

    Attributes:
        weights: those in force; in mode "observe" those of a run without AdaptMix.
    """

    def __init__(
        self,
        domains: Domains,
        settings: Settings,
        *,
        steering: Steering,
        measurements: Measurements,
        guards: Guards,
        warn: WarnOnce,
    ) -> None:
        self._settings = settings
        self._steering, self._measurements = steering, measurements
        self._guards, self._warn = guards, warn
        self.weights = Weights.proportional(domains.importance)

    @property
    def row_shares(self) -> FloatArray:
        """(K,) shares of rows: sampling weights are shares of the objective's unit."""
        return normalise(self.weights.sampling / self._measurements.lengths)

    def check_supplied(self) -> None:
        """Check that the run measures what the policy needs.

        Raises:
            MissingStatisticError: it does not, and weights depend on it.
        """
        with self._tolerating():
            self._steering.check_supplied(self._measurements.measured)

    def update(self, stats: DomainStats, plan: Plan | PublishedShares) -> bool:
        """Let the policy act on the newest statistics, if they are of the gradient.

        Returns:
            Whether there is anything new to log.
        """
        self._guards.check_repetition(stats.seen)
        measurements = self._measurements
        reads = any(name.startswith("grad_") for name in self._steering.requires)
        trusted = measurements.trusts(self._settings.min_coverage) and not measurements.misread
        return (reads and not trusted) or self._act(stats, plan)

    def _act(self, stats: DomainStats, plan: Plan | PublishedShares) -> bool:
        """Let the policy propose weights and publish them; returns whether it could."""
        known: bool | None = None
        with self._tolerating():
            known = self._steering.update(stats, measured=self._measurements.measured)
        if known is None:
            return False
        if not known:
            self._warn(
                TooFewRowsWarning,
                "The policy waits for statistics: no row of an observed step told what it needs. "
                "Gradients overflowed, steps have one row where inner products are needed, or no "
                "row was fresh where noise is.",
            )
            return False
        self._measurements.warn_of_gaps(stats, required=self._steering.requires)
        if self._settings.adapting:  # what is only proposed does nothing to the run
            estimated = bool(self._steering.requires)
            self._guards.check_weights(self._steering.proposed, stats, estimated=estimated)
        self.publish(plan)
        return True

    @contextmanager
    def _tolerating(self) -> Iterator[None]:
        """Where nothing depends on it, say what is missing and go on."""
        try:
            yield
        except MissingStatisticError as error:
            if self._settings.adapting:
                raise
            self._warn(MissingStatisticWarning, f"Nothing is proposed: {error}")

    def prepare(self, plan: Plan | PublishedShares, *, batch_size: int, horizon: int) -> None:
        """Tell the policy what the run is like; weights it begins with hold from the first step."""
        before = self._steering.proposed
        self._steering.prepare(batch_size=batch_size, horizon=horizon)
        if self._steering.proposed is not before:
            self.publish(plan)

    def take_pins(self, plan: Plan | PublishedShares) -> None:
        """Let the bounds count that were asked for."""
        if self._steering.take_pins():
            self.publish(plan, between_steps=False)

    def publish(self, plan: Plan | PublishedShares, *, between_steps: bool = True) -> None:
        """Let the proposed weights be in force, in a run that adapts.

        Args:
            plan: draws with their shares after its lag.
            between_steps: as for ``Plan.publish``.
        """
        if self._settings.adapting:
            self.weights = self._steering.proposed
            plan.publish(self.row_shares, between_steps=between_steps)

    def resume(self) -> None:
        """Go on with the weights of a policy whose state was loaded."""
        if self._settings.adapting:
            self.weights = self._steering.proposed
