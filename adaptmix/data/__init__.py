"""Which rows are trained on, and when: mixtures, the fixed-lag plan and its loader."""

from adaptmix.data.draw import Draw
from adaptmix.data.loader import Loader
from adaptmix.data.mixture import Mixture
from adaptmix.data.plan import Plan

__all__ = ["Draw", "Loader", "Mixture", "Plan"]
