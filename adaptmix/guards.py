"""Alarms: weights that collapse onto one domain, and domains that get worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptmix import schema
from adaptmix.checks import number
from adaptmix.errors import CollapseWarning, RegressionWarning, WarnOnce
from adaptmix.simplex import effective_domains
from adaptmix.types import Weights

# Fewer effective domains than this, and one has nearly all: 97 % of two, for instance.
_COLLAPSED = 1.15
# An evaluation has to be this much above the best one, twice in a row, to be no accident.
_REGRESSED = 1.05


class Guards:
    """Watches weights and held-out losses, and warns once of each kind.

    Args:
        names: K domain names.
        warn: of the run.
    """

    def __init__(self, names: Sequence[str], warn: WarnOnce) -> None:
        self._names = tuple(names)
        self._warn = warn
        self._best: dict[str, float] = {}
        self._above: dict[str, int] = {}

    def check_weights(self, weights: Weights) -> None:
        """Warn when sampling, or the objective, is all but one domain's."""
        objective = weights.importance * weights.loss
        intended = effective_domains(weights.importance)
        for what, shares in (("Sampling", weights.sampling), ("The objective", objective)):
            effective = effective_domains(shares)
            if effective < _COLLAPSED < intended:
                self._warn(
                    CollapseWarning,
                    f"{what} has collapsed onto {self._names[int(shares.argmax())]!r}: "
                    f"{effective:.2f} effective domains of {len(self._names)}. Bound it with "
                    "controller.pin(domain, sampling=(low, high)) or a policy's lower=.",
                )

    def check_losses(self, losses: Mapping[str, float]) -> None:
        """Warn when a domain's held-out loss is 5 % above its best, twice in a row.

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
            if self._above[name] == 2:
                self._warn(
                    RegressionWarning,
                    f"The held-out loss of {name!r} has risen to {loss:.4g}, from {best:.4g} at "
                    "best. If its weight has fallen too far, bound it with "
                    "controller.pin(domain, loss=(low, high), sampling=(low, high)).",
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
