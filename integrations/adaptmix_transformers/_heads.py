"""Per-sample gradients of heads that TRL fuses with the loss, and so never calls as layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from adaptmix.trainers import FusedHead, Matrix, Side, register_head

_TILE = 4096  # logits of each position that are held at once


class ChunkedLogProb(Matrix):
    """Rule for ``log_softmax(h Wᵀ + b)[target]``, whose logits exist in tiles only.

    Its input is (…, in + 2): the hidden state, the target and the logarithm of the normaliser.
    """

    plain = False

    def inputs(self, module: Any, x: Tensor, side: Side) -> Tensor:
        """Return the features of the hidden states."""
        return super().inputs(module, x[..., :-2], side)

    def outputs(self, module: Any, g: Tensor, side: Side) -> Tensor:
        """Return the features of the logits' gradients, a tile of the vocabulary at a time."""
        hidden, target, log_z = module.x[..., :-2], module.x[..., -2:-1], module.x[..., -1:]
        total = len(module.weight)
        parts = None
        for start in range(0, total, _TILE):
            rows = slice(start, start + _TILE)
            y = hidden @ module.weight.detach()[rows].to(hidden.dtype).T
            if module.bias is not None:
                y = y + module.bias.detach()[rows].to(y.dtype)
            y = y * module.scale
            t = torch.tanh(y / module.softcap) if module.softcap else None
            z = (y if t is None else module.softcap * t) * module.inv_t
            here = torch.arange(start, start + z.shape[-1], device=z.device) == target
            gradient = g.unsqueeze(-1) * (here.to(z.dtype) - torch.exp(z - log_z))
            if t is not None:
                gradient = gradient * (1.0 - t.square())
            part = side.part(gradient * (module.inv_t * module.scale), start, total)
            parts = part if parts is None else parts + part
        assert parts is not None
        return parts.reshape(len(parts), -1, parts.shape[-1])

    def __call__(self, module: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return whole per-sample gradients."""
        return super().__call__(SimpleNamespace(**{**vars(module), "x": x}), x, g)


@register_head("ChunkedLogProbFunctionBackward")
def chunked_log_prob(node: Any) -> FusedHead:
    """Read TRL's fused head off its node in the graph."""
    hidden, weight, bias, targets, log_z, _ = node.saved_tensors
    options = node.kernel_args
    beside = torch.stack([targets.to(log_z.dtype), log_z], dim=-1)
    module = SimpleNamespace(
        weight=weight,
        bias=bias,
        scale=options["logit_scale"],
        inv_t=options["inv_t"],
        softcap=options["softcap"] if options["HAS_SOFTCAP"] else None,
    )
    x = torch.cat([hidden.detach().to(log_z.dtype), beside], dim=-1)
    return FusedHead(ChunkedLogProb(), module, x, hidden)
