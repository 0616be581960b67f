"""Losses of every row against every other, as broadcasting makes them by mistake."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adaptmix._warn_once import WarnOnce
from adaptmix.errors import LossShapeWarning


def check_broadcast(losses: Tensor, warn: WarnOnce) -> None:
    """Look at (B, B) losses, which may be (B, T) ones with T = B, or have been broadcast.

    Predictions of shape (B, 1) and targets of shape (B,) make (B, B) differences, of each
    prediction and every row's target. Honest losses are computed from tensors with as many entries
    at least; those that are computed from (B, 1) or (B,) ones alone were broadcast.

    Args:
        losses: (B, …) unreduced losses.
        warn: of the run.

    Warns:
        LossShapeWarning: predictions were (B, 1); constants may yet be T for each row.

    Raises:
        ValueError: predictions were (B,), so that no row has a loss of its own.
    """
    size = len(losses)
    if size < 2 or losses.shape != (size, size):
        return
    shapes = set(_made_of(losses))
    if shapes == {(size,)}:
        raise ValueError(
            f"losses must have one entry per row first; got shape ({size}, {size}), broadcast from "
            f"predictions of shape ({size},), which compares each row's target with all rows' "
            f"predictions. Give predictions and targets the same shape, ({size},)."
        )
    if shapes == {(size, 1)}:
        warn(
            LossShapeWarning,
            f"Losses of shape ({size}, {size}) were broadcast from predictions of shape ({size}, "
            f"1). If targets have shape ({size},), each prediction is compared with all rows' "
            "targets: give both the same shape, as by predictions.squeeze(1). If every row has "
            f"{size} targets, this is as it should be.",
        )


def _made_of(losses: Tensor) -> Iterator[tuple[int, ...]]:
    """Yield the shapes that (B, B) losses are broadcast from; others than those where they are not.

    Parameters, and constants of the graph, tell nothing of rows.
    """
    whole = tuple(losses.shape)
    pending, known = [losses.grad_fn], {losses.grad_fn}
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if "mm" in node.name().lower():  # a product of matrices makes entries of its own
            yield whole
        for parent, number in node.next_functions:
            if parent is None or parent in known:
                continue
            known.add(parent)
            if isinstance(getattr(parent, "variable", None), torch.nn.Parameter):
                continue
            shape = tuple(parent._input_metadata[number].shape)
            if shape == whole:
                pending.append(parent)
            elif torch.Size(shape).numel() > 1:
                yield shape
