"""Online adaptive sampling and loss weights for training one model on several domains."""

from adaptmix import noise, policies, solvers
from adaptmix.controller import Controller
from adaptmix.data import Draw, Loader, Mixture
from adaptmix.errors import (
    AdaptmixWarning,
    CollapseWarning,
    CoverageWarning,
    ExhaustedLoaderWarning,
    FreshStartWarning,
    LagError,
    LengthGroupingWarning,
    MissingStatisticError,
    MissingStatisticWarning,
    NoiseWarning,
    NonFiniteWarning,
    PackingWarning,
    RegressionWarning,
    RowLengthWarning,
    SeamError,
    StateError,
    TooFewRowsWarning,
    UnseenDomainWarning,
)
from adaptmix.segments import Segments
from adaptmix.statistics import Coverage, Watch, register_rule
from adaptmix.types import Domains, DomainStats, Weights

__all__ = [
    "AdaptmixWarning",
    "CollapseWarning",
    "Controller",
    "Coverage",
    "CoverageWarning",
    "DomainStats",
    "Domains",
    "Draw",
    "ExhaustedLoaderWarning",
    "FreshStartWarning",
    "LagError",
    "LengthGroupingWarning",
    "Loader",
    "MissingStatisticError",
    "MissingStatisticWarning",
    "Mixture",
    "NoiseWarning",
    "NonFiniteWarning",
    "PackingWarning",
    "RegressionWarning",
    "RowLengthWarning",
    "SeamError",
    "Segments",
    "StateError",
    "TooFewRowsWarning",
    "UnseenDomainWarning",
    "Watch",
    "Weights",
    "noise",
    "policies",
    "register_rule",
    "solvers",
]
