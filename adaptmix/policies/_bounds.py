"""Operator overrides: bounds on single domains' weights, put on and taken off in mid-run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray, number
from adaptmix._types import Domains, Weights
from adaptmix.errors import StateError
from adaptmix.solvers import neyman_shares
from adaptmix.state import _schema as schema

# Bounds such as 1/K need not add up to exactly one in float64.
_ROUNDING = 1e-12

Bound = float | tuple[float, float]
"""A weight to hold, or the lowest and the highest it may have."""


def _scale(importance: FloatArray) -> FloatArray:
    """Return what a loss weight is a factor on; auxiliary domains have none, only a weight."""
    return np.where(importance > 0.0, importance, 1.0)


class Pins:
    """Bounds on sampling and loss weights, by domain.

    What a policy proposes is rescaled by one common factor and clipped to the bounds, so that the
    domains without a pin keep their proportions and the weights their sums.

    Args:
        domains: of the mixture.
    """

    def __init__(self, domains: Domains) -> None:
        self._domains = domains
        K = len(domains)
        self._bounds = {
            "sampling": (np.zeros(K), np.ones(K)),
            "loss": (np.zeros(K), 1.0 / _scale(domains.importance)),  # the most Σ π w = 1 allows
        }

    def with_bounds(self, domain: int, **bounds: Bound | None) -> Pins:
        """Return pins with new bounds for one domain; None takes a bound off.

        Args:
            domain: its index.
            bounds: ``sampling`` and ``loss``.

        Raises:
            TypeError: a bound that is no number.
            ValueError: a bound out of range, or the lower one above the upper one.
        """
        if bounds.get("loss") is not None and self._domains.importance[domain] == 0.0:
            raise ValueError(
                f"loss must not be bounded for {self._domains.names[domain]!r}, whose importance "
                "is 0: a loss weight is a factor on importance. Bound its sampling, or give it "
                "importance > 0."
            )
        free, new = Pins(self._domains), Pins(self._domains)
        new._bounds = dict(self._bounds)
        for kind, bound in bounds.items():
            lower, upper = (values.copy() for values in self._bounds[kind])
            least, most = (float(values[domain]) for values in free._bounds[kind])
            low, high = bound if isinstance(bound, tuple) else (bound, bound)
            lower[domain] = least if low is None else number(kind, low, minimum=least, maximum=most)
            upper[domain] = (
                most if high is None else number(kind, high, minimum=least, maximum=most)
            )
            if lower[domain] > upper[domain]:
                raise ValueError(f"{kind} must be (low, high) with low <= high; got {bound}.")
            new._bounds[kind] = (lower, upper)
        return new

    def apply(self, weights: Weights) -> Weights:
        """Return the weights within the bounds.

        Raises:
            ValueError: bounds that no weights meet together.
        """
        pi = weights.importance
        low, high = self._limits("sampling", np.ones_like(pi))
        sampling = neyman_shares(weights.sampling, lower=low, upper=high)
        low, high = self._limits("loss", _scale(pi))
        used = neyman_shares(weights.objective, lower=low, upper=high)
        if (lost := (sampling == 0.0) & (used > 0.0)).any():
            name = self._domains.names[int(lost.argmax())]
            raise ValueError(
                f"sampling must be > 0 for {name!r}, which counts in the objective; got 0. Pin a "
                "small share, or pin its loss weight at 0 too: pin(domain, sampling=0, loss=0)."
            )
        return Weights(sampling, None, pi, objective=used)

    def _limits(self, kind: str, scale: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the bounds on what adds up to 1: shares, or importance times loss weights."""
        lower, upper = self._bounds[kind]
        least, most = lower * scale, np.minimum(upper * scale, 1.0)
        what = "sampling" if kind == "sampling" else "importance · loss"
        if least.sum() > 1.0 + _ROUNDING:
            raise ValueError(
                f"{what} must add up to 1 over the domains, and the lowest values that pins allow "
                f"add up to {least.sum():.4g}: {self._listed(kind, 0)}. Lower one, or take it off "
                "with controller.pin(domain)."
            )
        if most.sum() < 1.0 - _ROUNDING:
            raise ValueError(
                f"{what} must add up to 1 over the domains, and the highest values that pins "
                f"allow add up to {most.sum():.4g}: {self._listed(kind, 1)}. Raise one, or take "
                "it off with controller.pin(domain)."
            )
        return least, most

    def _listed(self, kind: str, end: int) -> str:
        """Return the lower (0) or upper (1) ends of the pins, as they were given."""
        free = Pins(self._domains)._bounds[kind][end]
        bounds, sign = self._bounds[kind][end], (">=", "<=")[end]
        return ", ".join(
            f"{kind} {sign} {bounds[i]:.4g} for {self._domains.names[i]!r}"
            for i in np.flatnonzero(bounds != free)
        )

    @property
    def any(self) -> bool:
        """Whether a bound is on."""
        free = Pins(self._domains)._bounds
        return any(
            not np.array_equal(mine, theirs)
            for kind, bounds in self._bounds.items()
            for mine, theirs in zip(bounds, free[kind], strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return (2, K) bounds of each kind, the lower ones first."""
        return {kind: np.stack(bounds) for kind, bounds in self._bounds.items()}

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "pins") -> None:
        """Take over saved bounds.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        fields = dict.fromkeys(self._bounds, schema.array(2, len(self._domains), minimum=0.0))
        saved = schema.read(state, fields, name=name)
        for kind, (lower, upper) in saved.items():
            if (lower > upper).any():
                raise StateError(f"{name}.{kind} must have lower bounds below the upper ones.")
        self._bounds = {kind: (lower, upper) for kind, (lower, upper) in saved.items()}
