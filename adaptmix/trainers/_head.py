"""Where a model's own loss is weighted row by row: at a tensor that every row passes through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from adaptmix.errors import ObjectiveError


class _ScaleRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors
        shape = (-1,) + (1,) * (gradient.ndim - 1)
        return gradient * factors.to(gradient.dtype).reshape(shape), None


def scale_rows(tensor: Tensor, factors: Tensor) -> Tensor:
    """Return ``tensor`` as it is, and multiply the gradient that flows back by row.

    If the loss is a sum of one term per row of ``tensor``, and depends on the parameters through
    ``tensor`` only, then this weights the rows' losses by ``factors`` exactly.

    Args:
        tensor: (B, …).
        factors: (B,).

    Raises:
        ValueError: rows that do not match.
    """
    if tensor.ndim == 0 or tensor.shape[0] != factors.shape[0]:
        raise ValueError(
            f"tensor must have the draw's {factors.shape[0]} rows first; got shape "
            f"{tuple(tensor.shape)}."
        )
    scaled: Tensor = _ScaleRows.apply(tensor, factors)  # type: ignore[no-untyped-call]
    return scaled


class WeightedHead:
    """Weights rows at the output of one module, and checks that this has happened.

    It is exact where the loss is a sum over the rows of the module's output, such as the logits of
    a head. It is wrong below a batch normalisation, at hidden states (the head's own weights would
    not be weighted) and for losses over pairs of rows. It cannot see these: prove the loss
    (``couplings``) first.

    Args:
        model: holds the module.
        name: of the module in ``model.named_modules()``.

    Raises:
        ValueError: there is no such module.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules:
            outer = ", ".join(key for key, _ in model.named_children())
            raise ValueError(
                f"head must name a module of the model; got {name!r}. Its outermost are {outer}; "
                "a head's name may have dots."
            )
        self.name = name
        self._factors: Tensor | None = None
        self._output: Tensor | None = None
        self._forwards = 0
        self._backwards = 0
        self._handle: RemovableHandle | None = modules[name].register_forward_hook(self._on_forward)

    def open(self, factors: Tensor) -> None:
        """Weight the next forward pass by (B,) factors."""
        self._factors = factors
        self._forwards = 0
        self._backwards = 0

    def close(self) -> Tensor:
        """Stop weighting, and check that the forward pass went through the module once.

        Returns:
            The module's output, as whoever called it got it.

        Raises:
            ObjectiveError: it did not.
        """
        self._factors, output, self._output = None, self._output, None
        if self._forwards != 1 or output is None:
            raise ObjectiveError(
                f"head {self.name!r} must be called once in a training forward pass; got "
                f"{self._forwards} calls, so rows would not be weighted as stated. Name the module "
                "whose output the loss is computed from, and switch off fused losses."
            )
        return output

    def forget_backward(self) -> None:
        """Forget the gradients that arrived so far, as those of a proof."""
        self._backwards = 0

    def check_backward(self) -> None:
        """Check that gradients flowed back through the module since ``open``.

        Raises:
            ObjectiveError: none did.
        """
        if self._backwards != 1:
            raise ObjectiveError(
                f"head {self.name!r} must be what the loss is computed from; got "
                f"{self._backwards} gradients at its output in a training step. Name another one."
            )

    def remove(self) -> None:
        """Take the hook off; a second call does nothing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _on_forward(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._factors is None or not isinstance(output, Tensor) or not output.requires_grad:
            return output
        self._forwards += 1
        scaled = scale_rows(output, self._factors.to(output.device, non_blocking=True))
        scaled.register_hook(self._on_backward)
        self._output = scaled
        return scaled

    def _on_backward(self, gradient: Tensor) -> None:
        self._backwards += 1
