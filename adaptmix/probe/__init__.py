"""The gradient probe: every sample's gradient, seen in an ordinary backward pass."""

from adaptmix.probe._coverage import Coverage
from adaptmix.probe._probe import ESTIMATORS, GradientProbe
from adaptmix.probe.rules._registry import register_rule

__all__ = ["ESTIMATORS", "Coverage", "GradientProbe", "register_rule"]
