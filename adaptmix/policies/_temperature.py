"""Sampling by a power of the domains' sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmix._checks import number
from adaptmix._simplex import normalise
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run, Start


@dataclass(frozen=True)
class Temperature:
    """Shares p ∝ nᵗ of domains with n rows, from the first batch on; the objective stays as it is.

    t = 1 draws by size, t = 0 all domains alike. Elsewhere such sampling often means that the
    objective changes with it: for that, give the same numbers as importance.

    Args:
        exponent: t.

    Raises:
        TypeError: an exponent that is no number.
        ValueError: one that is not finite; at ``init``, domains of unknown size.

    Source:
        Arivazhagan et al., arXiv:1907.05019, with t = 1 / temperature.
    """

    exponent: float

    requires = frozenset[str]()

    def __post_init__(self) -> None:
        """Check the exponent."""
        object.__setattr__(self, "exponent", number("exponent", self.exponent))

    def init(self, domains: Domains, run: Run) -> Start:
        """Return the weights, which hold from the first batch on, and again as arrays."""
        if np.isinf(domains.sizes).any():
            raise ValueError(
                "Temperature needs the size of every domain; got one without end. Give that of a "
                "stream in Mixture(..., sizes={name: rows})."
            )
        logs = self.exponent * np.log(domains.sizes)
        shares = normalise(np.exp(logs - logs.max()))
        if (lost := (shares == 0.0) & (domains.importance > 0.0)).any():
            raise ValueError(
                f"exponent must leave every domain a share; got {self.exponent:g}, with which "
                f"{domains.names[int(lost.argmax())]!r} has none."
            )
        pi = domains.importance
        state = {"sampling": shares, "loss": np.ones_like(pi), "importance": pi}
        return Start(Weights(**state), state)

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the same weights again."""
        return Weights(**state), state
