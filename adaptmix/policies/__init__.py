"""Policies: pure functions from statistics to weights."""

from __future__ import annotations

from collections.abc import Callable

from adaptmix.checks import choice
from adaptmix.policies.base import Policy, Refinement, bind
from adaptmix.policies.chain import Chain, chain
from adaptmix.policies.erma import ERMA
from adaptmix.policies.fgls import FGLS
from adaptmix.policies.joint import Joint
from adaptmix.policies.static import Static
from adaptmix.policies.variance_aware import VarianceAware

__all__ = [
    "ERMA",
    "FGLS",
    "NAMED",
    "Chain",
    "Joint",
    "Policy",
    "Refinement",
    "Static",
    "VarianceAware",
    "bind",
    "chain",
    "named",
]

NAMED: dict[str, Callable[[], Policy]] = {
    "variance_aware": VarianceAware,
    "fgls": FGLS,
    "erma": ERMA,
    "joint": Joint,
    "static": Static,
    "fgls+variance_aware": lambda: chain(FGLS(), VarianceAware()),
    "erma+variance_aware": lambda: chain(ERMA(), VarianceAware()),
}


def named(name: str) -> Policy:
    """Return a policy by its name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    return NAMED[choice("policy", name, tuple(NAMED))]()
