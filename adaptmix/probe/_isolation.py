"""Whether packed samples see each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from adaptmix.data._segments import Segments
from adaptmix.errors import PackingWarning

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


def _gradient(value: Tensor, at: GradientEdge) -> Tensor | None:
    try:
        (gradient,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)
    except RuntimeError:  # as reentrant checkpointing raises
        return None
    return gradient
