"""How much of a model's gradient each parameter holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from adaptmix.distributed import HostCopy


class GradientMass:
    """Squared norms of parameters' gradients in one backward pass of the whole loss.

    Args:
        parameters: {number: parameter}. Those whose gradients arrive elsewhere, as sharded ones
            do, have no mass.
    """

    def __init__(self, parameters: Mapping[int, Tensor]) -> None:
        self._squares: dict[int, Tensor] = {}
        self._copy: HostCopy | None = None
        self._handles = [
            parameter.register_hook(partial(self._take, number))
            for number, parameter in parameters.items()
        ]

    @torch.no_grad()
    def _take(self, number: int, gradient: Tensor) -> None:
        norm = torch.linalg.vector_norm(gradient.detach().float()).double()
        self._squares[number] = self._squares.get(number, 0.0) + norm.square()

    def close(self) -> None:
        """Stop listening and send the norms to the host, without waiting for them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._squares:
            self._copy = HostCopy(torch.stack(list(self._squares.values())))

    def share(self, numbers: set[int]) -> float | None:
        """Return what these parameters hold of the whole, in [0, 1]; None when it is not known."""
        if self._copy is None:
            return None
        masses = self._copy.result()
        total = float(masses.sum())
        if not 0.0 < total < float("inf"):
            return None
        held: Iterable[tuple[int, float]] = zip(self._squares, masses.tolist(), strict=True)
        return sum((mass for number, mass in held if number in numbers), start=0.0) / total
