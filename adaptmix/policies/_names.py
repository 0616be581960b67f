"""What a policy's name stands for."""

from __future__ import annotations

from adaptmix._checks import choice
from adaptmix.policies import NAMED, Policy, Shrink, chain


def named(name: str) -> Policy:
    """Return the policy of a name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    first, *then = (stage() for stage in NAMED[choice("policy", name, tuple(NAMED))])
    return chain(Shrink(), first, *then) if then else with_shrinkage(first)


def with_shrinkage(policy: Policy) -> Policy:
    """Return a policy as a run uses it: a class that has a name behaves as its name does.

    Noisy statistics are shrunk first; tests/benchmarks/bench_policies.py measures what that saves.
    A chain, and a policy of the user's own, stays as it is.
    """
    has_name = any(type(policy) in stages for stages in NAMED.values())
    return chain(Shrink(), policy) if has_name and policy.requires else policy
