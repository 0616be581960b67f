"""Policies: pure functions from statistics to weights."""

from __future__ import annotations

from collections.abc import Callable

from adaptmix._checks import choice
from adaptmix.policies._base import Policy, Preparation, Refinement, bind, cautions
from adaptmix.policies._chain import Chain, chain
from adaptmix.policies._erma import ERMA
from adaptmix.policies._fgls import FGLS
from adaptmix.policies._joint import Joint
from adaptmix.policies._static import Static
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
    "Shrink",
    "Smooth",
    "Static",
    "TrustRegion",
    "VarianceAware",
    "WarmUp",
    "bind",
    "cautions",
    "chain",
    "named",
]

# Each shrinks its noisy statistics first: tests/benchmarks/bench_policies.py shows what that saves.
NAMED: dict[str, Callable[[], Policy]] = {
    "variance_aware": lambda: chain(Shrink(), VarianceAware()),
    "fgls": lambda: chain(Shrink(), FGLS()),
    "erma": lambda: chain(Shrink(), ERMA()),
    "joint": lambda: chain(Shrink(), Joint()),
    "static": Static,
    "fgls+variance_aware": lambda: chain(Shrink(), FGLS(), VarianceAware()),
    "erma+variance_aware": lambda: chain(Shrink(), ERMA(), VarianceAware()),
}


def named(name: str) -> Policy:
    """Return a policy by its name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    return NAMED[choice("policy", name, tuple(NAMED))]()
