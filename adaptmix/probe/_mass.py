"""How much of a model's gradient each parameter holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from adaptmix.probe._pauses import Pauses

_HALVES = frozenset({torch.float16, torch.bfloat16})


class GradientMass:
    """Squared norms of parameters' gradients in the backward passes of one step.

    Sharded gradients arrive elsewhere, so parameters that are sharded have no mass.

    Args:
        pauses: when gradients are of something else.
    """

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._squares: list[tuple[int, Tensor]] = []
        self._handles: list[RemovableHandle] = []

    def listen(self, parameters: Mapping[int, Tensor]) -> None:
        """Listen to the gradients of {number: parameter}, and forget those of other steps."""
        self.close()
        self._squares.clear()
        self._handles = [
            parameter.register_hook(partial(self._take, number))
            for number, parameter in parameters.items()
        ]

    def _take(self, number: int, gradient: Tensor) -> None:
        if self._pauses.steps:
            return
        flat = (gradient.detach() if gradient.requires_grad else gradient).reshape(-1)
        flat = flat.float() if flat.dtype in _HALVES else flat
        # A product takes a fraction of the time of a norm on CPU.
        self._squares.append((number, flat.dot(flat)))

    def close(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def split(self, numbers: Collection[int], like: Tensor) -> Tensor:
        """Return (2,) what these parameters hold, and the others; of the dtype and device of like.

        Gradients that are not finite count nothing: their step is left out.
        """
        total = like.new_zeros(2)
        if not self._squares:
            return total
        other = [int(number not in numbers) for number, _ in self._squares]
        first, *more = found = [square for _, square in self._squares]
        if any(square.device != first.device or square.dtype != first.dtype for square in more):
            found = [square.to(like) for square in found]
        squares = torch.stack(found).to(like)
        where = torch.tensor(other).to(like.device, non_blocking=True)
        return total.index_add_(0, where, squares).nan_to_num(0.0, 0.0, 0.0)
