"""Means over targets that count: whether every row has as many of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

_MEANS = ("NllLossBackward", "NllLoss2DBackward")
_STOP = "_ScaleRowsBackward"  # below it is the model
_MEAN = 1


@torch.no_grad()
def uneven_targets(loss: Tensor, rows: int) -> Tensor | None:
    """Return () whether a mean over targets that count has more of some rows than of others.

    PyTorch's cross-entropy divides by the targets that are not ignored, over all rows together. A
    row with more of them then has a larger share of the mean, and weighting rows' gradients does
    not make it the mean of rows' means. The number is read from the graph between the loss and the
    module at which rows are weighted, without waiting for the device.

    Args:
        loss: () with its graph.
        rows: B.

    Returns:
        None where there is no such mean.
    """
    uneven: Tensor | None = None
    for node in _between(loss):
        if not node.name().startswith(_MEANS):
            continue
        saved: Any = node
        target = saved._saved_target
        if saved._saved_reduction != _MEAN or target.numel() % rows:
            continue
        # It is kept without its sign.
        ignored = saved._saved_ignore_index
        ignored = ignored - 2**64 if ignored >= 2**63 else ignored
        numbers = (target != ignored).reshape(rows, -1).sum(1)
        found = (numbers != numbers[0]).any()
        uneven = found if uneven is None else uneven | found
    return uneven


def _between(loss: Tensor) -> Iterator[Node]:
    pending = [] if loss.grad_fn is None else [loss.grad_fn]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        if node.name().startswith(_STOP):
            continue
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
