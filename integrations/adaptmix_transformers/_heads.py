"""Per-sample gradients of heads that TRL fuses with the loss, and so never calls as layers."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adaptmix.trainers import IGNORED, FusedHead, Matrix, Side, register_head

_TILE = 4096  # logits of each position that are held at once


class ChunkedLogProb(Matrix):
    """Rule for ``log_softmax(h Wᵀ + b)[target]``, whose logits exist in tiles only.

    Its input is (…, in + 2): the hidden state, the target and the logarithm of the normaliser.
    """

    plain = False
    predicts = True

    def packs(self, dims: int) -> bool:
        """Return whether samples may be packed: the output has one number for each position."""
        return dims == 2

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


_NAME = "ChunkedLogProbFunctionBackward"
_SINK = "_DDPSinkBackward"
_NEAR = 8  # nodes between the head and what the model returns of it


@register_head(_NAME)
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


@dataclass(frozen=True, eq=False)
class ChunkedHead:
    """Computes logits that TRL's fused head never keeps, at the places that they are asked for.

    Args:
        node: of the head in the graph.
        mask: (P, T) positions of its log-probabilities that have a label.
    """

    node: Any
    mask: Tensor

    @property
    def targets(self) -> Tensor:
        """(P, T) labels, ``IGNORED`` where there is none."""
        labels: Tensor = self.node.saved_tensors[3]
        mask = self.mask
        ignored = labels.new_full(mask.shape, IGNORED)
        if len(labels) == mask.numel():
            return torch.where(mask, labels.view_as(mask), ignored)
        return ignored.masked_scatter(mask, labels)

    @torch.no_grad()
    def logits(self, places: Tensor) -> Tensor:
        """Return (n, C) logits at (n,) places among the flattened positions."""
        hidden, weight, bias, *_ = self.node.saved_tensors
        if len(hidden) != self.mask.numel():  # it is called with labelled positions alone
            places = (self.mask.flatten().cumsum(0) - 1)[places].clamp(min=0)
        options, x = self.node.kernel_args, hidden[places]
        logits = functional.linear(
            x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        )
        logits = logits.float() * options["logit_scale"]
        if options["HAS_SOFTCAP"]:
            logits = options["softcap"] * torch.tanh(logits / options["softcap"])
        scaled: Tensor = logits * options["inv_t"]
        return scaled


def chunked_head(log_probs: Tensor, mask: Tensor) -> ChunkedHead | None:
    """Return TRL's head that log-probabilities come from; None where they have no graph of it.

    Args:
        log_probs: (P, T) of a model's output.
        mask: (P, T) which of them have a label.
    """
    node, number = log_probs.grad_fn, log_probs.output_nr
    for _ in range(_NEAR):
        if node is None:
            return None
        if node.name() == _NAME:
            return ChunkedHead(node, mask.bool())
        # Behind DistributedDataParallel all outputs share a node, with an input for each.
        inputs = node.next_functions[number:] if node.name() == _SINK else node.next_functions
        node, number = next((edge for edge in inputs if edge[0] is not None), (None, 0))
    return None
