"""The options of a run that are plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adaptmix._checks import FloatArray, choice, integer, number
from adaptmix._loss import UNITS
from adaptmix._schedule import Course, Schedule
from adaptmix._types import Domains
from adaptmix.data import Count, Mixture, Plan
from adaptmix.data._elsewhere import Elsewhere, PublishedShares
from adaptmix.data._holdout import Holdout
from adaptmix.probe import ESTIMATORS

_MODES = ("adapt", "observe")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that ``Controller`` documents under the same names.

    Raises:
        TypeError: a value of the wrong kind.
        ValueError: a value out of its range.
    """

    mode: str
    unit: str
    update_every: int
    measure_every: int
    estimator: str
    half_life: float
    min_coverage: float

    def __post_init__(self) -> None:
        checked = {
            "mode": choice("mode", self.mode, _MODES),
            "unit": choice("unit", self.unit, UNITS),
            "update_every": integer("update_every", self.update_every, minimum=1),
            "measure_every": integer("measure_every", self.measure_every, minimum=1),
            "estimator": choice("estimator", self.estimator, ESTIMATORS),
            "half_life": number("half_life", self.half_life, minimum=0.0, strict=True),
            "min_coverage": number("min_coverage", self.min_coverage, minimum=0.0, maximum=1.0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def adapting(self) -> bool:
        """Whether weights are acted on, and not observed alone."""
        return self.mode == "adapt"

    @property
    def per_token(self) -> bool:
        """Whether the objective averages over tokens."""
        return self.unit == "token"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The options of what is drawn, which ``Controller`` documents under the same names."""

    counts: str
    lag: int
    seed: int
    when_exhausted: str
    max_epochs: Mapping[str, float] | float | None
    sampling: Schedule | Mapping[str, float] | None
    holdout: str | float | None
    seed_rows: bool

    def settled(
        self, mixture: Mixture | Domains, tokens_per_row: Mapping[str, float] | Count | None
    ) -> tuple[Mixture, Drawing]:
        """Return the mixture of a run, and the options that hold for it.

        Raises:
            TypeError: no mixture.
            ValueError: options of rows, where somebody else's loader draws them.
        """
        if isinstance(mixture, Mixture):
            return mixture, self
        if not isinstance(mixture, Domains):
            raise TypeError(
                f"mixture must be an adaptmix.Mixture; got {type(mixture).__name__}. "
                "Make one with Mixture({name: dataset}) or Mixture.from_labels(dataset, labels), "
                "or give Domains(names, importance=...) where somebody else's loader draws rows."
            )
        for name, given, ordinary in (
            ("when_exhausted", self.when_exhausted, ("repeat",)),
            ("max_epochs", self.max_epochs, (None,)),
            ("holdout", self.holdout, ("auto", None)),
        ):
            if given not in ordinary:
                raise ValueError(
                    f"{name} must be left out with Domains, whose rows somebody else's loader "
                    f"draws; got {given!r}. Use a Mixture, or let that loader see to it."
                )
        if callable(tokens_per_row):
            raise ValueError(
                "tokens_per_row must be numbers by name with Domains, for no row is here to be "
                "counted before training; got a function. Pass {domain: mean supervised tokens "
                "per row}."
            )
        # The loader draws the domain of each row on its own.
        return Elsewhere(mixture), replace(self, counts=PublishedShares.counts, holdout=None)

    def plan(
        self, holdout: Holdout, *, shares: FloatArray, course: Course
    ) -> Plan | PublishedShares:
        """Return what decides which rows are drawn, or tells somebody else's loader how often.

        Args:
            holdout: the mixture that is trained on, and the rows that are held out of it.
            shares: (K,) expected shares of rows to begin with.
            course: what schedules make of shares.
        """
        mixture = holdout.training
        if isinstance(mixture, Elsewhere):
            return PublishedShares(mixture, shares=shares, seed=self.seed, course=course)
        return Plan(
            mixture,
            shares=shares,
            lag=self.lag,
            seed=self.seed,
            counts=self.counts,
            when_exhausted=self.when_exhausted,
            max_epochs=self.max_epochs,
            course=course,
            seed_rows=self.seed_rows,
            holdout=holdout,
        )
