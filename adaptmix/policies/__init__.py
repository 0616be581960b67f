"""Policies: pure functions from statistics to weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptmix.policies._base import Policy, Preparation, Refinement, Run, Start
from adaptmix.policies._chain import Chain, chain
from adaptmix.policies._erma import ERMA
from adaptmix.policies._fgls import FGLS
from adaptmix.policies._joint import Joint
from adaptmix.policies._static import Static
from adaptmix.policies._temperature import Temperature
from adaptmix.policies._transfer import Transfer
from adaptmix.policies._variance_aware import VarianceAware
from adaptmix.policies.transforms import Floor, Shrink, Smooth, TrustRegion, WarmUp

__all__ = [
    "ERMA",
    "FGLS",
    "NAMED",
    "Chain",
    "Floor",
    "Joint",
    "Policy",
    "Preparation",
    "Refinement",
    "Run",
    "Shrink",
    "Smooth",
    "Start",
    "Static",
    "Temperature",
    "Transfer",
    "TrustRegion",
    "VarianceAware",
    "WarmUp",
    "chain",
]

# What a name stands for.
NAMED: dict[str, tuple[Callable[[], Any], ...]] = {
    "variance_aware": (VarianceAware,),
    "fgls": (FGLS,),
    "erma": (ERMA,),
    "joint": (Joint,),
    "static": (Static,),
    "transfer": (Transfer,),
    "fgls+variance_aware": (FGLS, VarianceAware),
    "erma+variance_aware": (ERMA, VarianceAware),
}
