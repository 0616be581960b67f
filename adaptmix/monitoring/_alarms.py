"""Alarms: weights that collapse or leave their range, rows that repeat, domains that get worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray, number
from adaptmix._simplex import effective_domains
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix._warn_once import WarnOnce
from adaptmix.errors import (
    CollapseWarning,
    LossWeightWarning,
    RegressionWarning,
    RepetitionWarning,
)
from adaptmix.state import _schema as schema

# Fewer effective domains than this, and one has nearly all: 97 % of two, for instance.
_COLLAPSED = 1.15
# An evaluation has to be this much above the best one, twice in a row, to be no accident.
_REGRESSED = 1.05
# A domain drawn more than so many times over repeats, if it is also so much more often than all
# rows on average: a run of many epochs repeats every domain, as its user wants.
_TIMES_OVER, _MORE_THAN_ALL = 4.0, 2.0
# Loss weights outside of this change what is trained, not how well.
_LOSS_WEIGHTS = (0.25, 4.0)
# Noise variances this far apart, 30 times in deviation, are hardly of one unit.
_OTHER_UNIT = 1000.0
# A weight this much off what it is without AdaptMix has moved.
_MOVED = 1.1


class Guards:
    """Watches weights, draws and held-out losses, and warns once of each kind.

    Args:
        domains: of the mixture.
        warn: of the run.
    """

    def __init__(self, domains: Domains, warn: WarnOnce) -> None:
        self._domains = domains
        self._names = domains.names
        self._warn = warn
        self._best: dict[str, float] = {}
        self._above: dict[str, int] = {}
        self._weights = Weights.proportional(domains.importance)
        self._times = np.zeros(len(domains))

    def check_weights(self, weights: Weights, stats: DomainStats, *, estimated: bool) -> None:
        """Warn when sampling, or the objective, is all but one domain's, or weights are extreme.

        Args:
            weights: in force.
            stats: what they were made of.
            estimated: whether loss weights answer to estimates, rather than to the user.
        """
        self._weights = weights
        objective = weights.objective
        intended = effective_domains(weights.importance)
        of_loss = "controller.pin(domain, loss=(low, high))"
        of_shares = "controller.pin(domain, sampling=(low, high)) or a policy's lower="
        moved = of_shares if self._domains.auxiliary else of_loss
        for what, shares, bound in (
            ("Sampling", weights.sampling, of_shares),
            ("The objective", objective, moved),
        ):
            effective = effective_domains(shares)
            if effective < _COLLAPSED < intended:
                self._warn(
                    CollapseWarning,
                    f"{what} has collapsed onto {self._names[int(shares.argmax())]!r}: "
                    f"{effective:.2f} effective domains of {len(self._names)}. Bound it with "
                    f"{bound}.",
                )
        # With auxiliary domains, another objective than importance states is what is wanted.
        if estimated and not self._domains.auxiliary:
            self._check_loss_weights(weights.loss, stats.noise)

    def _check_loss_weights(self, loss: FloatArray, noise: FloatArray) -> None:
        low, high = _LOSS_WEIGHTS
        known = np.where(noise > 0.0, noise, np.nan)
        apart = np.nanmax(known) / np.nanmin(known) if np.isfinite(known).any() else 1.0
        moved = max(loss.max(), 1.0 / max(loss.min(), low)) > _MOVED
        if not moved or (low <= loss.min() and loss.max() <= high and apart <= _OTHER_UNIT):
            return
        least, most = int(loss.argmin()), int(loss.argmax())
        reason = "A domain that matters may be all but switched off."
        if apart > _OTHER_UNIT:
            quiet, noisy = int(np.nanargmin(known)), int(np.nanargmax(known))
            reason = (
                f"The noise of {self._names[noisy]!r} is {apart:.3g} times that of "
                f"{self._names[quiet]!r}: are their targets in one unit? Standardise each domain's "
                "targets, or supply dispersions (adaptmix.noise)."
            )
        self._warn(
            LossWeightWarning,
            f"Loss weights go from {loss[least]:.3g} for {self._names[least]!r} to "
            f"{loss[most]:.3g} for {self._names[most]!r}, so the run trains on another objective "
            f"than importance states. {reason} Bound them with controller.pin(domain, loss=(low, "
            'high)), or use policy="variance_aware", which leaves them at 1.',
        )

    def check_repetition(self, seen: FloatArray) -> None:
        """Warn when a domain's rows are drawn many times over, and far more often than others.

        Args:
            seen: (K,) rows drawn since the run began.
        """
        sizes = self._domains.sizes
        self._times = seen / sizes
        # Beside auxiliary domains, those that count repeat: their few rows are the reason for it.
        helping = self._domains.importance == 0.0
        times = np.where(helping, self._times, 0.0) if helping.any() else self._times
        worst = int(times.argmax())
        on_average = float(seen.sum() / sizes.sum())
        if times[worst] > max(_TIMES_OVER, _MORE_THAN_ALL * on_average):
            self._warn(
                RepetitionWarning,
                f"{self._names[worst]!r} has been drawn {self._times[worst]:.1f} times over "
                f"({seen[worst]:.0f} draws of its {sizes[worst]:.0f} rows; all rows on average "
                f"{on_average:.1f} times). The model may learn its rows by heart, and its "
                "gradients no longer tell how noisy new ones are. Bound how often with "
                f"max_epochs={{{self._names[worst]!r}: 4}} or its share with "
                f"controller.pin({self._names[worst]!r}, sampling=(0, high)), lower its "
                "importance, or add rows.",
            )

    def check_losses(self, losses: Mapping[str, float]) -> None:
        """Warn when a domain that counts has a held-out loss 5 % above its best, twice in a row.

        Args:
            losses: held-out loss by domain; not every domain has to be there.

        Raises:
            TypeError: a loss that is no number.
            ValueError: one that is not finite.
        """
        for name, value in losses.items():
            loss = number(f"losses[{name!r}]", value)
            best = self._best.setdefault(name, loss)
            self._best[name] = min(best, loss)
            worse = loss > best + (_REGRESSED - 1.0) * abs(best)
            self._above[name] = self._above.get(name, 0) + 1 if worse else 0
            # A domain that does not count may get worse: it is there to help the others.
            if self._above[name] == 2 and name not in self._domains.auxiliary:
                self._warn(
                    RegressionWarning,
                    f"The held-out loss of {name!r} has risen to {loss:.4g}, from {best:.4g} at "
                    f"best. {self._cause(self._names.index(name))}",
                )

    def _cause(self, domain: int) -> str:
        """Return the likely cause of a domain's getting worse, and what helps against it."""
        name, weights = self._names[domain], self._weights
        share, was = float(weights.sampling[domain]), float(weights.importance[domain])
        loss, times = float(weights.loss[domain]), float(self._times[domain])
        if times > _TIMES_OVER:
            rising = f" and its share has risen to {share:.3g}" if share > _MOVED * was else ""
            return (
                f"Its rows have been drawn {times:.1f} times over{rising}: the model may learn "
                f"them by heart. Bound its share with controller.pin({name!r}, sampling=(0, "
                f"{was:.3g})), or add rows."
            )
        if loss * _MOVED < 1.0:
            return (
                f"Its loss weight has fallen to {loss:.3g}. Bound it with "
                f"controller.pin({name!r}, loss=(low, high))."
            )
        if share * _MOVED < was:
            return (
                f"Its share has fallen to {share:.3g} from {was:.3g}, which makes its part of the "
                f"gradient noisier. Bound it with controller.pin({name!r}, sampling=(low, high))."
            )
        return (
            "Neither its share nor its loss weight has fallen, and its rows are not worn out: look "
            "at the learning rate, at its held-out rows, and at domains that may pull against it."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return (K,) best losses, NaN where none is known, and how long each was above."""
        return {
            "best": np.array([self._best.get(name, np.nan) for name in self._names]),
            "above": np.array([self._above.get(name, 0) for name in self._names], dtype=np.int64),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "guards") -> None:
        """Take over saved ones.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        K = len(self._names)
        fields = {
            "best": schema.array(K, unknown=np.nan),
            "above": schema.array(K, dtype=np.int64, minimum=0),
        }
        saved = schema.read(state, fields, name=name)
        known = {
            domain: (best, above)
            for domain, best, above in zip(
                self._names, saved["best"].tolist(), saved["above"].tolist(), strict=True
            )
            if best == best
        }
        self._best = {domain: best for domain, (best, _) in known.items()}
        self._above = {domain: above for domain, (_, above) in known.items()}
