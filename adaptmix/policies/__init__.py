"""Policies: pure functions from statistics to weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptmix._checks import choice
from adaptmix.policies._base import Policy, Preparation, Refinement, Run, Start
from adaptmix.policies._chain import Chain, chain
from adaptmix.policies._erma import ERMA
from adaptmix.policies._fgls import FGLS
from adaptmix.policies._joint import Joint
from adaptmix.policies._static import Static
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
    "Transfer",
    "TrustRegion",
    "VarianceAware",
    "WarmUp",
    "chain",
    "named",
    "whole",
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


def named(name: str) -> Policy:
    """Return the policy of a name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    first, *then = (stage() for stage in NAMED[choice("policy", name, tuple(NAMED))])
    return chain(Shrink(), first, *then) if then else whole(first)


def whole(policy: Policy) -> Policy:
    """Return a policy as a run uses it: one that has a name gets the stages that its name has.

    These shrink noisy statistics first, for what that saves see tests/benchmarks/bench_policies.py.
    A chain, and a policy of the user's own, stays as it is.
    """
    has_name = any(type(policy) in stages for stages in NAMED.values())
    return chain(Shrink(), policy) if has_name and policy.requires else policy
