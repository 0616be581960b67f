"""Whether the loss of each row is computed from the model's outputs for that row alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from adaptmix.data import Segments
from adaptmix.data._order_proof import tensors_of
from adaptmix.errors import ObjectiveError
from adaptmix.probe._graph import nodes_of
from adaptmix.probe._verification import normalises_over_batch

_KEPT = 4  # forward passes whose outputs are looked at


class RowLosses:
    """Watches what a model returns, and differentiates the losses of half of the rows there.

    They must have no gradient at the outputs of the others. What a loss does without a gradient,
    such as a mask made of losses, does not show. Layers of a batch normalisation between outputs
    and losses are no coupling, as they are none inside the model.

    Args:
        model: with all its wrappers; watched until ``check``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._outputs: list[Tensor] = []
        self._passes = 0
        self._mixing = normalises_over_batch(model)
        sharded = _is_sharded(model)
        self._hook = None if sharded else model.register_forward_hook(self._on_forward)

    def __deepcopy__(self, memo: dict[int, Any]) -> RowLosses:
        """Copies of the model are not watched, and hold none of its outputs."""
        return RowLosses(nn.Identity())

    def _on_forward(self, _: nn.Module, __: Any, outputs: Any) -> None:
        if torch.is_grad_enabled():
            self._passes += 1
            self._outputs += [t for t in tensors_of(outputs) if t.grad_fn is not None and t.ndim]
            del self._outputs[:-_KEPT]

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        self._outputs = []
        if self._hook is not None:
            self._hook.remove()

    def check(
        self,
        losses: Tensor,
        segments: Segments | None,
        samples: Tensor | None,
        aside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Refuse losses of rows that depend on the outputs for other rows; stop watching.

        Args:
            losses: (B,) or (B, T, …), with a graph.
            segments: where rows are packed, which is proved elsewhere.
            samples: (R,) the row of the draw that each row inside the model is of, or None.
            aside: makes a context in which nothing is measured of what is differentiated.

        Raises:
            ObjectiveError: they do.
        """
        outputs = self._outputs
        self.close()
        size = len(losses)
        of = torch.arange(size) if samples is None else samples.cpu()
        # Where another dim is as long, it may be that of rows.
        outputs = [t for t in outputs if len(t) == len(of) and len(of) not in t.shape[1:]]
        if segments is not None or size < 2 or not outputs or not losses.requires_grad:
            return
        if (self._mixing and self._passes > 1) or _untold(losses, outputs):
            return
        mine = losses.flatten(1).sum(1) if losses.ndim > 1 else losses
        place = torch.arange(size)
        # Two ways to halve the rows, so that orders with a structure do not stay hidden.
        for half in (place % 2 == 0, place < size // 2):
            with aside():
                try:
                    gradients = torch.autograd.grad(
                        mine[half.to(mine.device)].sum(),
                        outputs,
                        retain_graph=True,
                        allow_unused=True,
                    )
                except RuntimeError:  # as reentrant checkpointing raises
                    return
            for gradient in gradients:
                if gradient is not None and _reaches(gradient, ~half[of]):
                    raise ObjectiveError(
                        "losses must have one entry per row, computed from the model's outputs for "
                        "that row alone; these depend on the outputs for other rows, as "
                        "contrastive losses, ranking within a batch and normalisers made of "
                        "outputs do. No weight of a row stands for its domain then. Pass losses "
                        "that are computed row by row, or train with "
                        'Controller(mode="observe"), which changes nothing.'
                    )


def _reaches(gradient: Tensor, rows: Tensor) -> bool:
    """Return whether some of the rows have a gradient; those that overflowed tell nothing."""
    return bool((gradient[rows.to(gradient.device)].abs() > 0).any())


def _untold(losses: Tensor, outputs: list[Tensor]) -> bool:
    """Return whether rows may meet between outputs and losses as they do inside of a model.

    They do in a batch normalisation, and what compiled code does is not seen.
    """
    ends = {get_gradient_edge(t).node for t in outputs}
    names = (node.name() for node in nodes_of([losses], stop=ends))
    return any("BatchNorm" in name or "CompiledFunction" in name for name in names)


def _is_sharded(model: nn.Module) -> bool:
    """Return whether outputs carry hooks that gather parameters for the backward pass."""
    names = (type(module).__name__ for module in model.modules())
    return any("FSDP" in name or "FullySharded" in name for name in names)
