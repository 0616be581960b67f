"""Online adaptive sampling and loss weights for training one model on several domains."""

from adaptmix import errors, noise, policies, solvers
from adaptmix._schedule import Schedule
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.controller import Controller
from adaptmix.data import Draw, Mixture, Segments
from adaptmix.monitoring._texts import installed_version
from adaptmix.probe import register_rule

__version__ = installed_version()

__all__ = [
    "Controller",
    "DomainStats",
    "Domains",
    "Draw",
    "Mixture",
    "Schedule",
    "Segments",
    "Weights",
    "__version__",
    "errors",
    "noise",
    "policies",
    "register_rule",
    "solvers",
]
