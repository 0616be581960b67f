"""Which positions of a call are whose, where samples are packed."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptmix.data._segments import Segments
from adaptmix.probe._coverage import Layer
from adaptmix.probe._tracked import Rows
from adaptmix.probe.rules._registry import Factored


def holds_positions(segments: Segments, layer: Layer, size: int, gradient: Tensor) -> bool:
    """Return whether a call's input and output are of the positions that samples are packed in.

    Args:
        segments: of the samples.
        layer: that is called.
        size: the first dim of its input.
        gradient: of its output.
    """
    if not getattr(layer.rule, "by_position", False) or size != len(gradient):
        return False
    if getattr(layer.rule, "by_prediction", False):
        # One number of each position, or of each but the last, which predicts nothing.
        packed, positions = segments.shape
        whole = gradient.shape[1:] == (positions,) or gradient.shape[1:] == (positions - 1,)
        return gradient.ndim == 2 and len(gradient) == packed and whole
    # Positions and features; a weight's rule knows one dim of positions only.
    dims = gradient.ndim == 3 if isinstance(layer.rule, Factored) else gradient.ndim >= 3
    return dims and gradient.shape[:2] == segments.shape


def by_places(segments: Segments, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the sample of each picked position, and the gradient with zeros where there is none.

    Args:
        segments: of the samples.
        rows: that were picked.
        gradient: (rows, …) of the call's output.

    Returns:
        None where it is not known which positions they are.
    """
    if rows.ids is None or rows.places is None:
        return None
    samples = segments.ids.to(gradient.device)[rows.ids, rows.places]
    kept = (samples >= 0).reshape(-1, *[1] * (gradient.ndim - 1))
    return samples.clamp(min=0), torch.where(kept, gradient, 0)
