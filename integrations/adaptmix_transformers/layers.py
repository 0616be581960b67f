"""Per-sample gradients of a layer that only transformers has."""

from __future__ import annotations

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from adaptmix import register_rule


@register_rule(Conv1D)
def transposed_linear(module: Conv1D, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Rule for y = x W + b with x of shape (b, ..., in): ∂W = Σ_t x_t g_tᵀ, ∂b = Σ_t g_t."""
    x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    gradients = {"weight": x.mT @ g, "bias": g.sum(1)}
    return {name: value for name, value in gradients.items() if getattr(module, name).requires_grad}
