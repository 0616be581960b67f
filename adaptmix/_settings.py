"""The options of a run that are plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaptmix._checks import choice, integer, number
from adaptmix._loss import UNITS
from adaptmix._schedule import Schedule
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
