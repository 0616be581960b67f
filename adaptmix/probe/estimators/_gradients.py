"""Sums of per-sample gradients by domain, and of gradients that are products of vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GRAM_COLUMNS = 2**20  # of a gradient matrix, held in float64 at once


@dataclass(eq=False)
class GradientSums:
    """Sums over samples j of the gradients g_j of their own losses, by domain; all additive.

    Args:
        count: (K,) float64, samples.
        square: (K,) float64, Σ_j ‖g_j‖² or its sketch's, grad².
        vectors: (K, ...) tensors that hold Σ_j g_j, or a sketch of it whose inner products are
            those of Σ_j g_j in expectation, grad; float32, or float64 where parameters are. Zero
            where the gradient turned out to be hidden.
        skipped: () float64, samples left out because a gradient of their micro-batch was not
            finite.
        mass: (2,) float64, squared norms of the gradients of parameters that are seen, and of the
            others, of this process's micro-batches, grad²; zeros where they are not known.
    """

    count: Tensor
    square: Tensor
    vectors: list[Tensor]
    skipped: Tensor
    mass: Tensor

    def tensors(self) -> list[Tensor]:
        """Return every tensor, in a fixed order, for summing in place over batches or ranks."""
        return [self.count, self.square, self.skipped, self.mass, *self.vectors]

    def forget(self) -> None:
        """Count nothing."""
        for tensor in self.tensors():
            tensor.zero_()

    def norms(self) -> Tensor:
        """Return the (K,) float64 squared norms of the summed gradients, grad²."""
        total = torch.zeros_like(self.count)
        for vector in self.vectors:
            for columns in torch.split(vector.flatten(1), _GRAM_COLUMNS, dim=1):
                total += torch.linalg.vector_norm(columns, dim=1, dtype=torch.float64).square()
        return total

    def gram(self) -> Tensor:
        """Return the (K, K) float64 inner products of the summed gradients, grad²."""
        K = self.count.numel()
        gram = self.count.new_zeros(K, K)
        for vector in self.vectors:
            for columns in torch.split(vector.flatten(1), _GRAM_COLUMNS, dim=1):
                exact = columns.double()
                gram += exact @ exact.T
        return gram


def products(left: Tensor, right: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Sum gradients that are products of two vectors, l_j r_jᵀ, without forming any of them.

    Args:
        left: (B, m) vectors l_j.
        right: (B, n) vectors r_j.
        members: (B, K) factors of each product in each sum.

    Returns:
        (B,) float64 squared norms ‖l_j‖² ‖r_j‖², and (K, m, n) sums Σ_j members_jk l_j r_jᵀ.
    """
    norms = [torch.linalg.vector_norm(v, dim=1, dtype=torch.float64) for v in (left, right)]
    weighted = (members.unsqueeze(2) * left.unsqueeze(1)).flatten(1)
    sums = (weighted.T @ right).reshape(members.shape[1], left.shape[1], right.shape[1])
    return (norms[0] * norms[1]).square(), sums


def align(values: Tensor, like: Tensor) -> Tensor:
    """Return (B,) values with as many dims as ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
