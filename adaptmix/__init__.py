"""Online adaptive sampling and loss weights for training one model on several domains."""

from adaptmix import noise, policies, solvers
from adaptmix.controller import Controller, Watch
from adaptmix.data import Draw, Loader, Mixture
from adaptmix.errors import (
    AdaptmixWarning,
    CoverageWarning,
    ExhaustedLoaderWarning,
    LagError,
    MissingStatisticError,
    NoiseWarning,
    NonFiniteWarning,
    RowLengthWarning,
    StateError,
    TooFewRowsWarning,
    UnseenDomainWarning,
)
from adaptmix.statistics import register_rule
from adaptmix.types import Domains, DomainStats, Weights

__all__ = [
    "AdaptmixWarning",
    "Controller",
    "CoverageWarning",
    "DomainStats",
    "Domains",
    "Draw",
    "ExhaustedLoaderWarning",
    "LagError",
    "Loader",
    "MissingStatisticError",
    "Mixture",
    "NoiseWarning",
    "NonFiniteWarning",
    "RowLengthWarning",
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
