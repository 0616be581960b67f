"""Exact solvers for sampling and loss weights: float64 (K,) vectors in, (K,) vectors out.

Each solver comes with a certificate, a relative residual of its optimality conditions, that judges
any candidate without running the solver.
"""

from adaptmix.solvers._allocation import allocation_residual, neyman_shares
from adaptmix.solvers._counts import counts_residual, neyman_counts
from adaptmix.solvers._fgls import fgls_residual, fgls_weights
from adaptmix.solvers._gap import gap_residual, gap_weights
from adaptmix.solvers._joint import JointSolution, joint_residual, joint_weights
from adaptmix.solvers._transfer import TransferSolution, transfer_weights

__all__ = [
    "JointSolution",
    "TransferSolution",
    "allocation_residual",
    "counts_residual",
    "fgls_residual",
    "fgls_weights",
    "gap_residual",
    "gap_weights",
    "joint_residual",
    "joint_weights",
    "neyman_counts",
    "neyman_shares",
    "transfer_weights",
]
