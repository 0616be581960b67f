"""What a run tells about its domains: sums, running estimates and the gradient probe."""

from adaptmix.statistics.coverage import Coverage
from adaptmix.statistics.measurements import Measurements
from adaptmix.statistics.probe import GradientProbe
from adaptmix.statistics.rules import register_rule

__all__ = ["Coverage", "GradientProbe", "Measurements", "register_rule"]
