"""Exact solvers for sampling and loss weights: float64 (K,) vectors in, (K,) vectors out."""

from adaptmix.solvers._allocation import neyman_shares
from adaptmix.solvers._counts import neyman_counts
from adaptmix.solvers._fgls import fgls_weights
from adaptmix.solvers._gap import gap_weights
from adaptmix.solvers._joint import JointSolution, joint_weights

__all__ = [
    "JointSolution",
    "fgls_weights",
    "gap_weights",
    "joint_weights",
    "neyman_counts",
    "neyman_shares",
]
