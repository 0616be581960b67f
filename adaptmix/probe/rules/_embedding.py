"""Embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptmix.probe.rules._linear import Matrix
from adaptmix.probe.rules._registry import Side, register_rule


class Lookup(Matrix):
    """Rule for y = W[x] with indices x of shape (b, ...); the padding row has no gradient."""

    plain = False

    def __init__(self) -> None:
        super().__init__(transposed=True)

    def accepts(self, module: Any, x: Tensor) -> bool:
        """Return whether an input has a dim of samples."""
        return x.ndim >= 1

    def inputs(self, module: Any, x: Tensor, side: Side) -> Tensor:
        """Return the features of the input at each position."""
        images = side.lookup(x)
        if module.padding_idx is not None:
            images = images.masked_fill((x == module.padding_idx).unsqueeze(-1), 0.0)
        return images.reshape(len(x), -1, images.shape[-1])

    def __call__(self, module: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return whole per-sample gradients, added up row by row."""
        rows, width = module.num_embeddings, module.embedding_dim
        if module.padding_idx is not None:
            g = g.masked_fill((x == module.padding_idx).unsqueeze(-1), 0.0)
        offset = rows * torch.arange(len(x), device=x.device)
        where = x.reshape(len(x), -1) + offset.unsqueeze(1)
        weight = g.new_zeros(len(x) * rows, width)
        weight.index_add_(0, where.flatten(), g.reshape(-1, width))
        return {"weight": weight.reshape(len(x), rows, width)}


# Gradients scaled by frequency depend on the whole batch and max_norm changes the weight in place,
# so neither has a per-sample gradient.
register_rule(
    nn.Embedding, lambda m: not (m.scale_grad_by_freq or m.sparse or m.max_norm is not None)
)(Lookup())
