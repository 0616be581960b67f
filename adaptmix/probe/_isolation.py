"""Whether a sample's loss depends on its own row of the model's input, and on no other."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from adaptmix.data._segments import Segments
from adaptmix.errors import PackingWarning, RowOrderWarning

_SO = (
    "so a sample's gradient may hold parts of others', and variances within domains are "
    "approximate. Make attention block-diagonal: position_ids that start anew in every segment, "
    "where the model's attention goes by them, or a mask."
)


def warn_unless_isolated(
    segments: Segments,
    values: Tensor | None,
    outputs: Iterable[tuple[GradientEdge, torch.Size]],
) -> bool:
    """Differentiate the loss of one packed sample, and see whether it depends on another's inputs.

    Args:
        segments: where the samples are.
        values: (B,) their own losses.
        outputs: of the model's first layers, by their place in the graph and their shape.

    Returns:
        Whether that is known now; not as long as no two samples share a row.

    Warns:
        PackingWarning: it depends on them, or this cannot be told.
    """
    sample = segments.neighbour
    if sample is None:
        return False
    at = next((edge for edge, shape in outputs if shape[:2] == segments.shape), None)
    gradient = None if values is None or at is None else _gradient(values[sample], at)
    if gradient is None:
        found = "It could not be checked whether packed samples see each other"
    else:
        others = (segments.ids != sample).to(gradient.device)
        if not gradient.flatten(2).abs().amax(2)[others].any():
            return True
        found = "Samples that are packed together see each other"
    warnings.warn(f"{found}, {_SO}", PackingWarning, stacklevel=4)
    return True


def rows_in_order(
    values: Tensor | None, outputs: Iterable[tuple[GradientEdge, torch.Size]]
) -> bool | None:
    """Differentiate the losses of a few rows, and see whether they depend on their own rows.

    Args:
        values: (B,) the rows' own losses.
        outputs: of the model's first layers, by their place in the graph and their shape.

    Returns:
        None as long as it cannot be told: no losses, or no layer of B rows.

    Warns:
        RowOrderWarning: the model has its rows in another order than the losses.
    """
    if values is None:
        return None
    size = len(values)
    at = next((edge for edge, shape in outputs if shape and shape[0] == size), None)
    if at is None:
        return None
    told: bool | None = None
    for row in sorted({0, size // 2, size - 1}):
        gradient = _gradient(values[row], at)
        if gradient is None:
            continue
        reached = gradient.flatten(1).abs().amax(1) > 0.0
        if bool(reached.any()):
            told = True
            if not bool(reached[row]):
                warnings.warn(
                    f"The loss of row {row} does not depend on row {row} of the model's first "
                    "layer, but on another: rows are put into another order inside the model. "
                    "Gradient statistics would be other domains', so weights stay as they are. "
                    "Give the model its rows in the order of the losses.",
                    RowOrderWarning,
                    stacklevel=4,
                )
                return False
    return told


def _gradient(value: Tensor, at: GradientEdge) -> Tensor | None:
    try:
        (gradient,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)
    except RuntimeError:  # as reentrant checkpointing raises
        return None
    return gradient
