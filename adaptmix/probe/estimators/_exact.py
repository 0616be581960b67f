"""The exact estimator: whole per-sample gradients, one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from adaptmix.probe._coverage import Layer, ParameterMap
from adaptmix.probe.estimators._gradients import align, products
from adaptmix.probe.estimators._micro_batch import MicroBatch
from adaptmix.probe.rules._registry import Factored

# Elements of per-sample gradients held at once.
_CHUNK_ELEMENTS = 2**24


class ExactBatch(MicroBatch):
    """One micro-batch whose sums are exact.

    A parameter used once is reduced as soon as its gradient arrives; one used more often is kept
    per sample until all of its uses are summed, because their norms do not add up.

    Args:
        parameters: the model's parameters.
        num_domains: K.
    """

    def __init__(self, parameters: ParameterMap, num_domains: int) -> None:
        super().__init__(parameters, num_domains)
        self._sums: dict[int, Tensor] = {}
        self._stash: dict[int, Tensor] = {}

    def keep(self, layer: Layer, x: Tensor) -> Tensor:
        """Return the whole input."""
        return x.detach()

    def _add(
        self, layer: Layer, kept: Tensor | None, gradient: Tensor, samples: Tensor | None
    ) -> None:
        assert kept is not None and self._scale is not None
        scale = self._scale if samples is None else self._scale[samples]
        indices = layer.indices.values()
        dtype = self._parameters.dtypes[next(iter(indices))]
        kept, gradient = self._by_sample(kept, samples), self._by_sample(gradient, samples)
        g = self._where(gradient.to(dtype) * align(scale.to(dtype), gradient), samples)
        x = self._where(kept.to(dtype) if kept.is_floating_point() else kept, samples)
        rule = layer.rule.factored
        if rule is not None and rule.plain and self._may_multiply(layer, x, samples):
            self._add_vectors(layer, rule, x, g)
            return
        step = max(1, _CHUNK_ELEMENTS // sum(self._parameters.shapes[i].numel() for i in indices))
        for start in range(0, len(x), step):
            chunk = slice(start, start + step)
            for name, rows in layer.rule(layer.module, x[chunk], g[chunk]).items():
                if name in layer.indices:
                    self._deliver(layer.indices[name], chunk, rows, samples)

    def _add_whole(self, index: int, gradients: Tensor, samples: Tensor | None) -> None:
        assert self._scale is not None
        scale = self._scale if samples is None else self._scale[samples]
        scaled = gradients * align(scale.to(gradients.dtype), gradients)
        self._deliver(index, slice(None), self._where(scaled, samples), samples)

    def _may_multiply(self, layer: Layer, x: Tensor, samples: Tensor | None) -> bool:
        """Return whether gradients that are products of two vectors are cheaper to sum so."""
        return x.ndim == 2 and all(
            self._few_products(index, samples) and not self._parameters.refused(index)
            for index in layer.indices.values()
        )

    def _add_vectors(self, layer: Layer, rule: Factored, x: Tensor, g: Tensor) -> None:
        members = functional.one_hot(self._domains, self._num_domains).to(g.dtype)
        if "bias" in layer.indices:
            self._square += torch.linalg.vector_norm(g, dim=1, dtype=torch.float64).square()
            self._sums[layer.indices["bias"]] = members.T @ g
        if "weight" in layer.indices:
            pair = (x, g) if rule.inputs_dim == 0 else (g, x)
            square, self._sums[layer.indices["weight"]] = products(*pair, members)
            self._square += square

    def _deliver(self, index: int, chunk: slice, gradients: Tensor, samples: Tensor | None) -> None:
        """Take in the (b, *shape) gradients of one use of a parameter, for a chunk of rows."""
        self._parameters.check_shape(index, gradients)
        if self._parameters.refused(index):
            return
        if self.uses[index] <= 1 and samples is None:
            self._reduce(index, chunk, gradients)
            return
        if index not in self._stash:
            self._stash[index] = gradients.new_zeros(len(self._domains), *gradients.shape[1:])
        if samples is None:
            self._stash[index][chunk] += gradients
        else:
            self._stash[index].index_add_(0, samples[chunk], gradients)

    def _reduce(self, index: int, chunk: slice, gradients: Tensor) -> None:
        """Sum the (b, *shape) whole gradients of a parameter, and their squared norms."""
        if index not in self._sums:
            self._sums[index] = gradients.new_zeros(self._num_domains, *gradients.shape[1:])
        self._sums[index].index_add_(0, self._domains[chunk], gradients)
        # Row by row, because one float32 norm over 2**25 elements is off by 0.4% on CPU.
        rows = gradients.reshape(*gradients.shape[:2], -1)
        norms = torch.linalg.vector_norm(rows, dim=-1).double()
        self._square[chunk] += norms.square().reshape(len(gradients), -1).sum(1)

    def _restart(self) -> None:
        super()._restart()
        self._sums.clear()
        self._stash.clear()

    def image(self, index: int, gradient: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient

    def _parts(self) -> dict[int, Tensor]:
        for index, stash in self._stash.items():
            if not self._parameters.refused(index):
                self._reduce(index, slice(None), stash)
        self._stash.clear()
        return dict(self._sums)

    def _joined(self, parts: Mapping[int, Tensor]) -> list[Tensor]:
        shapes, dtypes = self._parameters.shapes, self._parameters.dtypes
        return [
            parts[i]
            if i in parts
            else self._square.new_zeros(self._num_domains, *shapes[i], dtype=dtypes[i])
            for i in self._parameters.candidates
        ]
