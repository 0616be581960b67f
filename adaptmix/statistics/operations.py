"""Per-sample gradients of what an operation takes besides the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PerSample = Callable[[Tensor], Tensor]
"""(gradient of an operation's output, (n, …)) -> (n, *shape) gradients of what it took."""


def reduced(values: Tensor, shape: torch.Size) -> Tensor:
    """Return (n, *shape) sums of (n, …) values over the dims that ``shape`` is broadcast along."""
    inner = values.shape[1:]
    if len(shape) > len(inner):  # its first dim is the samples', of size one
        return reduced(values, shape[1:]).unsqueeze(1)
    lead = len(inner) - len(shape)
    values = values.flatten(1, lead).sum(1) if lead else values
    dims = [1 + d for d, size in enumerate(shape) if size == 1 and values.shape[1 + d] != 1]
    return values.sum(dims, keepdim=True) if dims else values


def of_term(shape: torch.Size, sign: float = 1.0) -> PerSample:
    """Return the gradients of a term that is added to every sample, or expanded to all of them."""
    return lambda g: sign * reduced(g, shape)


def of_factor(shape: torch.Size, other: Tensor) -> PerSample:
    """Return the gradients of a factor that every sample is multiplied by."""
    return lambda g: reduced(g * other.detach(), shape)


def by_running_again(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    source: Tensor,
    samples: Mapping[int, int],
) -> PerSample:
    """Return the gradients of ``source`` by running an operation once more for each sample.

    Args:
        function: the operation.
        args: its arguments, tensors or sequences of them among others.
        kwargs: its arguments by keyword.
        source: one of the arguments.
        samples: {identity of an argument with samples: its rows per sample}.
    """
    args, kwargs = _detached(tuple(args)), _detached(dict(kwargs))

    def one(j: int, leaf: Tensor, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(one(j, leaf, part) for part in value)
        if isinstance(value, dict):
            return {key: one(j, leaf, part) for key, part in value.items()}
        if isinstance(value, _Kept):
            if value.identity == id(source):
                return leaf
            m = samples.get(value.identity)
            return value.tensor if m is None else value.tensor[j * m : (j + 1) * m]
        return value

    def per_sample(g: Tensor) -> Tensor:
        found = []
        for j, gradient in enumerate(g):
            with torch.enable_grad():
                leaf = source.detach().requires_grad_()
                output = function(*one(j, leaf, args), **one(j, leaf, kwargs))
                gradient = gradient.reshape(output.shape)
                found.append(torch.autograd.grad(output, leaf, gradient)[0])
        return torch.stack(found)

    return per_sample


class _Kept:
    """An argument without its history, by which the original is still known."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.identity = tensor.detach(), id(tensor)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Kept(value)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_detached(part) for part in value)
    if isinstance(value, dict):
        return {key: _detached(part) for key, part in value.items()}
    return value
