"""Backward passes that leave what autograd functions saved as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from adaptmix.probe._graph import nodes_of


@contextmanager
def restoring_saved(roots: Iterable[Tensor]) -> Iterator[None]:
    """Give autograd functions back what they saved, after backward passes beside training.

    Fused kernels, such as Liger's, write gradients into the memory of what they saved, and autograd
    does not notice. The training step's own pass through the same graph would then be wrong.

    Args:
        roots: tensors that the passes begin at.
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in _saved(roots)]
    try:
        yield
    finally:
        for tensor, copy in kept:
            tensor.data.copy_(copy)  # the tensor itself would count as changed in place


def _saved(roots: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield what functions written in Python saved of activations."""
    for node in nodes_of(roots):
        if isinstance(node, BackwardCFunction):
            yield from filter(_may_be_overwritten, (*_given(node), *vars(node).values()))


def _may_be_overwritten(saved: Any) -> bool:
    if not isinstance(saved, Tensor) or isinstance(saved, nn.Parameter):
        return False
    own = saved.layout == torch.strided and all(saved.stride())  # expanded ones share memory
    return own and saved.is_floating_point()


def _given(node: Any) -> tuple[Tensor | None, ...]:
    try:
        saved: tuple[Tensor | None, ...] = node.saved_tensors
    except RuntimeError:  # they are freed
        return ()
    return saved
