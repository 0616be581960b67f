"""A run as its record tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray
from adaptmix.monitoring._quantities import PROPOSED
from adaptmix.monitoring._texts import Caution

# Statistics are those of the second half: at its start a run knows little.
_SETTLED = 0.5


@dataclass(frozen=True, eq=False)
class Series:
    """A quantity over a run.

    Attributes:
        steps: (N,) optimizer steps, ascending.
        values: (N,) what it was then.
    """

    steps: NDArray[np.int64]
    values: FloatArray

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.values[-1])

    @property
    def settled(self) -> float:
        """The median over the second half of the steps."""
        start = self.steps[0] + _SETTLED * (self.steps[-1] - self.steps[0])
        return float(np.median(self.values[self.steps >= start]))


@dataclass(frozen=True, eq=False)
class RunRecord:
    """All that a run wrote of itself.

    Attributes:
        label: what the run is called.
        folder: where its record lies.
        configuration: of the controller; empty where a logger took no text.
        domains: K names.
        by_domain: {quantity: {domain: series}}.
        overall: {quantity: series}.
        cautions: warnings that were given.
        unseen: Markdown table of modules that are not measured; "" when there are none.
        seconds: from the first entry to the last.
    """

    label: str
    folder: str
    configuration: Mapping[str, Any]
    domains: tuple[str, ...]
    by_domain: Mapping[str, Mapping[str, Series]]
    overall: Mapping[str, Series]
    cautions: tuple[Caution, ...] = ()
    unseen: str = ""
    seconds: float = 0.0
    importance: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        K = len(self.domains)
        given = self.configuration.get("importance") or np.full(K, 1.0 / K)
        object.__setattr__(self, "importance", np.array(given, dtype=np.float64))

    @property
    def observing(self) -> bool:
        """Whether weights were only proposed."""
        told = self.configuration.get("mode")
        return told == "observe" or (
            told is None and f"{PROPOSED}sampling_weight" in self.by_domain
        )

    @property
    def auxiliary(self) -> list[str]:
        """Domains of importance 0, which are there to help the others."""
        counted = zip(self.domains, self.importance, strict=True)
        return [name for name, pi in counted if pi == 0.0]

    @property
    def policy(self) -> str:
        """The policy as the user wrote it."""
        return str(self.configuration.get("policy", "unknown"))

    @property
    def per_token(self) -> bool:
        """Whether shares are shares of tokens."""
        return self.configuration.get("unit") == "token"

    @property
    def steps(self) -> int:
        """The last step that the record tells of."""
        every = [*self.overall.values()]
        every += [series for table in self.by_domain.values() for series in table.values()]
        return max((int(series.steps[-1]) for series in every), default=0)

    def of(self, quantity: str) -> Mapping[str, Series]:
        """Return a quantity by domain; shares and loss weights also where they are proposed."""
        return self.by_domain.get(quantity) or self.by_domain.get(PROPOSED + quantity) or {}

    def final(self, quantity: str) -> FloatArray:
        """Return (K,) last values of a quantity, NaN where it is not known."""
        table = self.of(quantity)
        return np.array([table[name].last if name in table else np.nan for name in self.domains])

    def settled(self, quantity: str) -> float:
        """Return an overall quantity's median over the second half of the run; NaN if unknown."""
        series = self.overall.get(quantity)
        return np.nan if series is None else series.settled

    @property
    def attained_gain(self) -> float:
        """Variance under proportional sampling over that under the shares in force."""
        return self.settled("predicted_gain") / self.settled("variance_ratio")

    def heldout(self) -> Series | None:
        """Return the held-out loss of the objective: the mean over domains by importance.

        Only evaluations of all domains that count are used; None when there is none.
        """
        table = self.of("heldout_loss")
        counted = [i for i, pi in enumerate(self.importance) if pi > 0.0]
        names = [self.domains[i] for i in counted]
        if any(name not in table for name in names):
            return None
        steps = table[names[0]].steps
        for name in names[1:]:
            steps = np.intersect1d(steps, table[name].steps)
        if not steps.size:
            return None
        curves = [values_at(table[name], steps) for name in names]
        return Series(steps, self.importance[counted] @ np.array(curves))


def unevaluated(run: RunRecord) -> list[str]:
    """Return the domains that count and have no held-out loss."""
    table = run.of("heldout_loss")
    counted = zip(run.domains, run.importance, strict=True)
    return [name for name, pi in counted if pi > 0.0 and name not in table]


def values_at(series: Series, steps: NDArray[np.int64]) -> FloatArray:
    """Return a series' values at (M,) steps that it has."""
    found: FloatArray = series.values[np.searchsorted(series.steps, steps)]
    return found
