"""Per-sample parameter gradients of one layer, from its input and its output gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight

Rule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
"""(module, input (b, ...), output gradient (b, ...)) -> {parameter name: (b, *parameter shape)}.

A rule never mixes samples and is linear in the output gradient. It may leave out parameters that
are frozen; one that it leaves out although it is trainable counts as not seen.
"""

RULES: dict[type[nn.Module], tuple[Rule, Callable[[Any], bool]]] = {}


def register_rule(
    module_type: type[nn.Module], supports: Callable[[Any], bool] = lambda _: True
) -> Callable[[Rule], Rule]:
    """Return a decorator that makes a rule the one for ``module_type``, replacing any before it.

    Subclasses that keep the type's ``forward`` use the rule too. Register before the probe is
    made.

    Args:
        module_type: the layer's class.
        supports: whether the rule holds for a module as configured; always when left out.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self, size: int) -> None:
        ...         super().__init__()
        ...         self.gain = nn.Parameter(torch.ones(size))
        ...
        ...     def forward(self, x: Tensor) -> Tensor:  # (B, size)
        ...         return self.gain * x
        >>> rule = register_rule(Scale)(lambda module, x, g: {"gain": g * x})
    """

    def register(rule: Rule) -> Rule:
        RULES[module_type] = (rule, supports)
        return rule

    return register


def find_rule(module: nn.Module) -> Rule | None:
    """Return the rule for ``module``, or None where there is none that holds for it."""
    for kind in type(module).__mro__:
        # A subclass that overrides forward computes something else than the rule assumes.
        if kind in RULES and type(module).forward is kind.forward:
            rule, supports = RULES[kind]
            return rule if supports(module) else None
    return None


def _trainable(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


@register_rule(nn.Linear)
def linear(module: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Rule for y = x Wᵀ + b with x of shape (b, ..., in): ∂W = Σ_t g_t x_tᵀ, ∂b = Σ_t g_t."""
    if x.ndim < 2:
        return {}
    x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    gradients = {}
    if _trainable(module.weight):
        gradients["weight"] = g.mT @ x
    if _trainable(module.bias):
        gradients["bias"] = g.sum(1)
    return gradients


@register_rule(
    nn.Embedding, lambda m: not (m.scale_grad_by_freq or m.sparse or m.max_norm is not None)
)
def embedding(module: nn.Embedding, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Rule for y = W[x] with indices x of shape (b, ...); the padding row has no gradient.

    Gradients scaled by frequency depend on the whole batch and ``max_norm`` changes W in place,
    so neither has a per-sample gradient.
    """
    rows, width = module.num_embeddings, module.embedding_dim
    if module.padding_idx is not None:
        g = g.masked_fill((x == module.padding_idx).unsqueeze(-1), 0.0)
    offset = rows * torch.arange(len(x), device=x.device)
    where = x.reshape(len(x), -1) + offset.unsqueeze(1)
    weight = g.new_zeros(len(x) * rows, width)
    weight.index_add_(0, where.flatten(), g.reshape(-1, width))
    return {"weight": weight.reshape(len(x), rows, width)}


def _affine(module: nn.LayerNorm | nn.RMSNorm, normalised: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Gradients of y = weight * normalised + bias, summed over the dims the two are shared by."""
    shared = tuple(range(1, g.ndim - len(module.normalized_shape)))

    def total(gradient: Tensor) -> Tensor:
        return gradient.sum(shared) if shared else gradient

    gradients = {}
    if _trainable(module.weight):
        gradients["weight"] = total(normalised * g)
    if _trainable(getattr(module, "bias", None)):
        gradients["bias"] = total(g)
    return gradients


@register_rule(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Rule for y = weight * (x - mean) / sqrt(var + eps) + bias."""
    if x.ndim <= len(module.normalized_shape):
        return {}
    return _affine(module, functional.layer_norm(x, module.normalized_shape, eps=module.eps), g)


@register_rule(nn.RMSNorm)
def rms_norm(module: nn.RMSNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Rule for y = weight * x / sqrt(mean(x²) + eps)."""
    if x.ndim <= len(module.normalized_shape):
        return {}
    return _affine(module, functional.rms_norm(x, module.normalized_shape, eps=module.eps), g)


@register_rule(nn.Conv1d, lambda m: m.padding_mode == "zeros")
@register_rule(nn.Conv2d, lambda m: m.padding_mode == "zeros")
def convolution(module: nn.Conv1d | nn.Conv2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Rule for convolutions of x (b, channels, ...): the samples become groups of one sample.

    Source:
        Rochette et al., Efficient Per-Example Gradient Computations in Convolutional Neural
        Networks, arXiv:1912.06015, §3.
    """
    if x.ndim != len(module.kernel_size) + 2:
        return {}
    gradients = {}
    if _trainable(module.weight):
        x, padding = _pad(module, x)
        inputs, outputs = module.in_channels // module.groups, module.out_channels
        shape = (len(x) * outputs, inputs, *module.kernel_size)
        conv_weight = conv1d_weight if x.ndim == 3 else conv2d_weight
        weight = conv_weight(  # type: ignore[no-untyped-call]
            x.reshape(1, -1, *x.shape[2:]),
            shape,
            g.reshape(1, -1, *g.shape[2:]),
            module.stride,
            padding,
            module.dilation,
            len(x) * module.groups,
        )
        gradients["weight"] = weight.reshape(len(x), outputs, *shape[1:])
    if _trainable(module.bias):
        gradients["bias"] = g.flatten(2).sum(2)
    return gradients


def _pad(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the input and the padding, in numbers, under which ``module`` convolves it."""
    if not isinstance(module.padding, str):
        return x, module.padding
    if module.padding == "same":
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        # Padding counts from the last dim; of an odd span, the larger half goes to the right.
        x = functional.pad(
            x, [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
        )
    return x, (0,) * len(module.kernel_size)
