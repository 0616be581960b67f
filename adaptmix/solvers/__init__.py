"""Exact solvers for sampling and loss weights: float64 (K,) vectors in, (K,) vectors out."""

from adaptmix.solvers._allocation import neyman_shares
from adaptmix.solvers._counts import neyman_counts
from adaptmix.solvers._fgls import fgls_weights
from adaptmix.solvers._gap import gap_weights
from adaptmix.solvers._joint import JointSolution, joint_weights
from adaptmix.solvers._transfer import TransferSolution, transfer_weights

__all__ = [
    "JointSolution",
    "TransferSolution",
    "fgls_weights",
    "gap_weights",
    "joint_weights",
    "neyman_counts",
    "neyman_shares",
    "transfer_weights",
]
