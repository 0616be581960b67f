"""Sums of per-sample gradients by domain: what the exact estimator keeps of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from adaptmix.statistics.coverage import Layer, ParameterMap

# Elements of per-sample gradients, and columns of a gradient matrix, held at once.
_CHUNK_ELEMENTS = 2**24
_GRAM_COLUMNS = 2**20


@dataclass(eq=False)
class GradientSums:
    """Sums over samples j of the gradients g_j of their own losses, by domain; all additive.

    Args:
        count: (K,) float64, samples.
        square: (K,) float64, Σ_j ‖g_j‖², grad².
        vectors: one (K, *shape) tensor per parameter that has a rule, Σ_j g_j, grad; float32, or
            float64 where the parameter is. Zero where the gradient turned out to be hidden.
        skipped: () float64, samples left out because a gradient of their micro-batch was not
            finite.
    """

    count: Tensor
    square: Tensor
    vectors: list[Tensor]
    skipped: Tensor

    def tensors(self) -> list[Tensor]:
        """Return every tensor, in a fixed order, for summing in place over batches or ranks."""
        return [self.count, self.square, self.skipped, *self.vectors]

    def gram(self) -> Tensor:
        """Return the (K, K) float64 inner products of the summed gradients, grad²."""
        K = self.count.numel()
        gram = self.count.new_zeros(K, K)
        for vector in self.vectors:
            for columns in torch.split(vector.flatten(1), _GRAM_COLUMNS, dim=1):
                exact = columns.double()
                gram += exact @ exact.T
        return gram


class MicroBatch:
    """One micro-batch: the layer calls of its forward, and the gradients of its backward.

    A parameter used once is reduced as soon as its gradient arrives; one used more often is kept
    per sample until all of its uses are summed, because their norms do not add up.

    Args:
        parameters: the model's parameters.
        num_domains: K.
    """

    def __init__(self, parameters: ParameterMap, num_domains: int) -> None:
        self.uses: Counter[int] = Counter()  # layer calls by parameter
        self.calls: dict[Node, list[Node]] = {}  # graph nodes of layer inputs by that of the output
        self._parameters = parameters
        self._num_domains = num_domains
        self._scale: Tensor | None = None
        self._sums: dict[int, Tensor] = {}
        self._stash: dict[int, Tensor] = {}

    def expect(self, domains: Tensor, factors: Tensor) -> None:
        """Fix the samples: the domain of each, (B,), and its factor in the loss, (B,)."""
        self._domains = domains
        self._factors = factors.detach().double()
        self._kept = self._factors != 0.0
        self._square = torch.zeros_like(self._factors)

    def begin(self, upstream: Tensor) -> None:
        """Start the backward pass, given the gradient () that arrives at the loss."""
        inverse = 1.0 / (upstream.detach().double() * self._factors)
        self._scale = torch.where(self._kept, inverse, 0.0)

    def add(self, layer: Layer, x: Tensor, gradient: Tensor) -> None:
        """Add what one call of ``layer`` contributes, given its input and output gradient."""
        if self._scale is None:  # the gradient is that of another loss
            return
        indices = layer.indices.values()
        if all(self._parameters.refused(index) for index in indices):
            return
        size = len(self._domains)
        if x.ndim == 0 or gradient.ndim == 0 or not len(x) == len(gradient) == size:
            self._parameters.refuse(indices)
            return
        dtype = self._parameters.dtypes[next(iter(indices))]
        # Where, not times: a sample that is left out may have overflowed.
        g = _where(self._kept, gradient.to(dtype) * _align(self._scale.to(dtype), gradient))
        x = _where(self._kept, x.to(dtype) if x.is_floating_point() else x)
        step = max(1, _CHUNK_ELEMENTS // sum(self._parameters.shapes[i].numel() for i in indices))
        for start in range(0, size, step):
            chunk = slice(start, start + step)
            for name, rows in layer.rule(layer.module, x[chunk], g[chunk]).items():
                if name in layer.indices:
                    self._deliver(layer.indices[name], chunk, rows)

    def _deliver(self, index: int, chunk: slice, gradients: Tensor) -> None:
        """Take in the (b, *shape) gradients of one use of a parameter, for a chunk of samples."""
        shape = self._parameters.shapes[index]
        if gradients.shape[1:] != shape:
            raise ValueError(
                f"rule must return gradients of shape (b, *{tuple(shape)}); "
                f"got {tuple(gradients.shape)}. Check the rule passed to register_rule."
            )
        if self._parameters.refused(index):
            return
        if self.uses[index] <= 1:
            self._reduce(index, chunk, gradients)
            return
        if index not in self._stash:
            self._stash[index] = gradients.new_zeros(len(self._domains), *shape)
        self._stash[index][chunk] += gradients

    def _reduce(self, index: int, chunk: slice, gradients: Tensor) -> None:
        """Sum the (b, *shape) whole gradients of a parameter, and their squared norms."""
        if index not in self._sums:
            self._sums[index] = gradients.new_zeros(self._num_domains, *gradients.shape[1:])
        self._sums[index].index_add_(0, self._domains[chunk], gradients)
        # Row by row, because one float32 norm over 2**25 elements is off by 0.4% on CPU.
        rows = gradients.reshape(*gradients.shape[:2], -1)
        norms = torch.linalg.vector_norm(rows, dim=-1).double()
        self._square[chunk] += norms.square().reshape(len(gradients), -1).sum(1)

    def finish(self) -> GradientSums | None:
        """Return the sums, or None when no gradient arrived.

        The layers of a sample arrive one by one and are summed before it is known whether all of
        them are finite, so a micro-batch in which any gradient is not finite counts nothing. The
        optimizer step it belongs to is spoilt by the same gradient.
        """
        for index, stash in self._stash.items():
            if not self._parameters.refused(index):
                self._reduce(index, slice(None), stash)
        self._stash.clear()
        if not self._sums:
            return None
        self._parameters.see(self._sums)
        broken = ~self._square.isfinite().all()
        shapes, dtypes = self._parameters.shapes, self._parameters.dtypes
        empty = self._square.new_zeros
        vectors = [
            self._sums[i].masked_fill_(broken, 0.0)
            if i in self._sums
            else empty(self._num_domains, *shapes[i], dtype=dtypes[i])
            for i in self._parameters.candidates
        ]
        kept = self._kept.double()
        count = empty(self._num_domains).index_add_(0, self._domains, kept)
        square = empty(self._num_domains).index_add_(0, self._domains, self._square)
        return GradientSums(
            count=count.masked_fill_(broken, 0.0),
            square=square.masked_fill_(broken, 0.0),
            vectors=vectors,
            skipped=kept.sum() * broken,
        )


def _align(values: Tensor, like: Tensor) -> Tensor:
    """Return (B,) values with as many dims as ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _where(kept: Tensor, values: Tensor) -> Tensor:
    """Return (B, ...) values with zeros for the samples that are not kept."""
    return torch.where(_align(kept, values), values, 0)
