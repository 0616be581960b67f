"""Online adaptive sampling and loss weights for training one model on several domains."""

from adaptmix import noise, policies, solvers
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.controller import Controller
from adaptmix.data import Draw, Loader, Mixture
from adaptmix.data._segments import Segments
from adaptmix.errors import (
    AdaptmixWarning,
    CollapseWarning,
    CoverageWarning,
    ExhaustedLoaderWarning,
    FreshStartWarning,
    LagError,
    LengthGroupingWarning,
    LoggingWarning,
    LossWeightWarning,
    MissingStatisticError,
    MissingStatisticWarning,
    NoiseWarning,
    NonFiniteWarning,
    PackingWarning,
    ProcessMismatchError,
    RegressionWarning,
    RepetitionWarning,
    RowLengthWarning,
    RowOrderWarning,
    SeamError,
    StateError,
    TooFewRowsWarning,
    UnseenDomainWarning,
)
from adaptmix.probe import Coverage, register_rule
from adaptmix.statistics import Watch

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
    "LoggingWarning",
    "LossWeightWarning",
    "MissingStatisticError",
    "MissingStatisticWarning",
    "Mixture",
    "NoiseWarning",
    "NonFiniteWarning",
    "PackingWarning",
    "ProcessMismatchError",
    "RegressionWarning",
    "RepetitionWarning",
    "RowLengthWarning",
    "RowOrderWarning",
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
