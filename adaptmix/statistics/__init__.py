"""What a run tells about its domains: sums, running estimates and the gradient probe."""

from adaptmix.statistics.coverage import Coverage
from adaptmix.statistics.lengths import known_lengths
from adaptmix.statistics.measurements import Measurements
from adaptmix.statistics.probe import ESTIMATORS, GradientProbe
from adaptmix.statistics.rules import register_rule
from adaptmix.statistics.watch import Watch

__all__ = [
    "ESTIMATORS",
    "Coverage",
    "GradientProbe",
    "Measurements",
    "Watch",
    "known_lengths",
    "register_rule",
]
