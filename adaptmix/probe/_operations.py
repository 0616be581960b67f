"""Per-sample gradients of what an operation takes besides the samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PerSample = Callable[[Tensor], list[Tensor]]
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
    return lambda g: [sign * reduced(g, shape)]


def of_factor(shape: torch.Size, other: Tensor) -> PerSample:
    """Return the gradients of a factor that every sample is multiplied by."""
    return lambda g: [reduced(g * other.detach(), shape)]


def by_running_again(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    sources: Sequence[Tensor],
    samples: Mapping[int, tuple[int, int]],
    output: int | None = None,
) -> PerSample:
    """Return the gradients of ``sources`` by running an operation once more for each sample.

    Args:
        function: the operation.
        args: its arguments, tensors or sequences of them among others.
        kwargs: its arguments by keyword.
        sources: some of the arguments.
        samples: {identity of an argument with samples: (their dim, its rows per sample)}.
        output: which of the operation's outputs the gradients come from, where it has several.
    """
    args, kwargs = _detached(tuple(args)), _detached(dict(kwargs))

    def one(j: int, leaves: Mapping[int, Tensor], value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(one(j, leaves, part) for part in value)
        if isinstance(value, dict):
            return {key: one(j, leaves, part) for key, part in value.items()}
        if not isinstance(value, _Kept):
            return value
        if value.identity in leaves:
            return leaves[value.identity]
        if value.identity not in samples:
            return value.tensor
        dim, each = samples[value.identity]
        return value.tensor.narrow(dim, j * each, each)

    def per_sample(g: Tensor) -> list[Tensor]:
        found = []
        for j, gradient in enumerate(g):
            with torch.enable_grad():
                leaves = {id(t): t.detach().requires_grad_() for t in sources}
                made = function(*one(j, leaves, args), **one(j, leaves, kwargs))
                made = made if output is None else made[output]
                gradient = gradient.reshape(made.shape).to(made.dtype)
                options = {"materialize_grads": True}
                found.append(torch.autograd.grad(made, [*leaves.values()], gradient, **options))
        return [torch.stack(parts) for parts in zip(*found, strict=True)]

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


_EMBEDDING = (
    *("input", "weight", "padding_idx", "max_norm", "norm_type"),
    *("scale_grad_by_freq", "sparse"),
)


def embedding_options(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call of ``functional.embedding`` by name."""
    return {**dict(zip(_EMBEDDING, args, strict=False)), **kwargs}


def depends_on_batch(options: Mapping[str, Any]) -> bool:
    """Return whether an embedding's gradient depends on the whole batch, or its weight changes."""
    return any(options.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse"))


def normalises_the_batch(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation normalises by a batch, or writes running statistics.

    It is then another operation for one sample alone, and would change the statistics once more.
    """
    if name not in ("batch_norm", "instance_norm"):
        return False
    flag, default = ("training", False) if name == "batch_norm" else ("use_input_stats", True)
    by_input = kwargs.get(flag, args[5] if len(args) > 5 else default)
    x = args[0] if args else kwargs.get("input")
    written = any(
        isinstance(t, Tensor) and t is not x and not t.requires_grad
        for t in (*args, *kwargs.values())
    )
    return bool(by_input) and (written or name == "batch_norm")


def reduced_is_right(shape: torch.Size, args: Sequence[Any]) -> bool:
    """Return whether a repetition, of all dims by ``args``, repeats dims of size one only."""
    times = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    sizes = (1,) * (len(times) - len(shape)) + tuple(shape)
    return all(int(n) == 1 or size == 1 for n, size in zip(times, sizes, strict=True))


def _unguarded(function: Any) -> Any:
    """Return a copy of a function of ``torch.nn.functional`` that does not ask to be overridden."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


UNGUARDED_ATTENTION = _unguarded(functional.multi_head_attention_forward)
