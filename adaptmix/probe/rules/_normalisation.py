"""Normalisation of one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptmix.probe.rules._registry import (
    LayerRule,
    register_recogniser,
    register_rule,
    trainable,
)


class Normalisation(LayerRule):
    """Rule for y = weight * normalised(x) + bias; also with 1 + weight in weight's place.

    Args:
        normalised: (module, x) -> (b, ..., *shape of the weight), or None for an x that has no dim
            of samples.
        channels_first: whether the dim after the samples is the weight's, and not the last ones.
    """

    normalises = True

    def __init__(
        self,
        normalised: Callable[[Any, Tensor], Tensor],
        *,
        channels_first: bool = False,
    ) -> None:
        self._normalised = normalised
        self.by_position = not channels_first

    def __call__(self, module: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return per-sample gradients, summed over the dims that weight and bias are shared by."""
        own = module.weight.ndim
        if x.ndim <= own:
            return {}
        normalised = self._normalised(module, x)
        first = 1 if self.by_position else 2
        positions = tuple(range(first, first + g.ndim - 1 - own))

        def total(gradient: Tensor) -> Tensor:
            return gradient.sum(positions) if positions else gradient

        gradients = {}
        if trainable(module.weight):
            gradients["weight"] = total(normalised.mul_(g))
        if trainable(getattr(module, "bias", None)):
            gradients["bias"] = total(g)
        return gradients


def _by_root_mean_square(module: Any, x: Tensor) -> Tensor:
    # In two passes over x, where functional.rms_norm takes several times as long on CPU.
    dims = tuple(range(-module.weight.ndim, 0))
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    eps = _eps(module)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return x * torch.rsqrt(norm.square() / module.weight.numel() + eps)


def _eps(module: Any) -> Any:
    """Return what is added to the mean square; the attribute has two names in the wild."""
    return getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)


@register_recogniser
def rms_norm_by_another_name(module: nn.Module) -> Normalisation | None:
    """Return the rule of a module that turns out to do what ``nn.RMSNorm`` does.

    Model libraries define their own, dozens of them, some with a twist. Whether one has none is
    found out by comparing the rule with autograd on a small input.
    """
    parameters = dict(module.named_parameters())
    if [*parameters] != ["weight"] or parameters["weight"].ndim != 1 or _eps(module) is None:
        return None
    weight = parameters["weight"]
    rule = Normalisation(_by_root_mean_square)
    try:
        x = torch.linspace(-1.0, 2.0, weight.numel(), device=weight.device).sin().reshape(1, 1, -1)
        with torch.enable_grad():
            y = type(module).forward(module, x)
            (want,) = torch.autograd.grad(y, weight, x.to(y.dtype))
        got = rule(module, x, x)["weight"][0]
        same = torch.allclose(got, want.to(got.dtype), rtol=0.02, atol=1e-4)
    except (RuntimeError, TypeError, ValueError, AttributeError):  # whatever it is, no such norm
        return None
    return rule if same else None


register_rule(nn.LayerNorm)(
    # With a weight it takes half of the time on CPU.
    Normalisation(
        lambda m, x: functional.layer_norm(
            x, m.normalized_shape, x.new_ones(m.normalized_shape), eps=m.eps
        )
    )
)
register_rule(nn.RMSNorm)(Normalisation(_by_root_mean_square))
register_rule(nn.GroupNorm)(
    Normalisation(
        lambda m, x: functional.group_norm(x, m.num_groups, eps=m.eps), channels_first=True
    )
)
