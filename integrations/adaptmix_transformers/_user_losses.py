"""Proves that the losses of ``AdaptMixCallback(loss=f)`` are those of the trainer's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptmix.errors import ObjectiveError
from adaptmix.trainers import LossInputs
from adaptmix_transformers._recognition import Recognised, proportional, tolerance
from adaptmix_transformers._rows import RowLosses


def proved(rows: RowLosses, loss_inputs: LossInputs, gradients: Sequence[Tensor]) -> Recognised:
    """Return what the trainer's loss makes of a user's losses.

    Raises:
        ObjectiveError: its gradient is not made of theirs.
    """
    values = rows.values
    if values.requires_grad:
        own = torch.autograd.grad(
            rows.totals.sum(), loss_inputs.edges, retain_graph=True, allow_unused=True
        )
        size = len(values)
        tokens = values.ndim == 2 and all(part.ndim > 2 for part in gradients)
        shape = gradients[0].shape[:2] if tokens else (size,)
        g, d = (
            torch.cat(
                [
                    (torch.zeros_like(other) if part is None else part).reshape(*shape, -1)
                    for part, other in zip(parts, gradients, strict=True)
                ],
                dim=-1,
            )
            for parts in (gradients, own)
        )
        factors = proportional(g, d, each=len(shape))
        if factors is not None:
            if factors.shape != values.shape and values.ndim == 2:
                factors = factors.reshape(size, -1)[:, : values.shape[1]]
            return Recognised(None, factors, 4.0 * tolerance(gradients[0].dtype))
    raise ObjectiveError(
        "loss=f must return the losses that the trainer's loss is made of, computed from the "
        "model's outputs; the gradient of the trainer's loss at them is not a multiple of each "
        "row's. Return those losses, or make compute_loss return their mean."
    )
