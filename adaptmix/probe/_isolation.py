"""Whether packed samples see each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from adaptmix.data._segments import Segments
from adaptmix.errors import PackingWarning
from adaptmix.probe._saved import restoring_saved

_SO = (
    "so a sample's gradient may hold parts of others', and variances within domains are "
    "approximate. Make attention block-diagonal: position_ids that start anew in every segment, "
    "where the model's attention goes by them, or a mask."
)


def warn_unless_isolated(
    segments: Segments,
    values: Tensor | None,
    layers: Iterable[tuple[GradientEdge, torch.Size]],
    *,
    outputs: Sequence[Tensor] = (),
) -> bool | None:
    """Differentiate the loss of one packed sample, and see whether it depends on another's inputs.

    Args:
        segments: where the samples are.
        values: (B,) their own losses; without a graph where they were computed elsewhere.
        layers: outputs of the model's first ones, by their place in the graph and their shape.
        outputs: the tensors that the losses are computed from.

    Returns:
        Whether samples are apart; None as long as no two of them share a row.

    Warns:
        PackingWarning: it depends on them, or this cannot be told.
    """
    sample = segments.neighbour
    if sample is None:
        return None
    at = next((edge for edge, shape in layers if shape[:2] == segments.shape), None)
    value = _value(segments, sample, values, outputs)
    gradient = None if value is None or at is None else _gradient(value, at)
    if gradient is None:
        found = "It could not be checked whether packed samples see each other"
    else:
        others = (segments.ids != sample).to(gradient.device)
        if not gradient.flatten(2).abs().amax(2)[others].any():
            return True
        found = "Samples that are packed together see each other"
    warnings.warn(f"{found}, {_SO}", PackingWarning, stacklevel=4)
    return False


def _value(
    segments: Segments, sample: int, values: Tensor | None, outputs: Sequence[Tensor]
) -> Tensor | None:
    """Return () what one sample's loss, or all that it is computed from, adds up to."""
    if values is not None and values.requires_grad:
        return values[sample]
    mine = torch.nn.functional.one_hot(torch.tensor(sample), len(segments))
    fitting = [t for t in outputs if t.ndim > 1 and len(t) == len(segments.ids)]
    parts = [
        (t.flatten(2).mean(2) if t.ndim > 2 else t) * segments.spread(mine, t.shape[1]).to(t)
        for t in fitting
    ]
    return torch.stack([part.sum() for part in parts]).sum() if parts else None


def _gradient(value: Tensor, at: GradientEdge) -> Tensor | None:
    try:
        with restoring_saved([value]):
            (gradient,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)
    except RuntimeError:  # as reentrant checkpointing raises
        return None
    return gradient
