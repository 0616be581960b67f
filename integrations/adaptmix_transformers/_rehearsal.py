"""A loss computed once more, on other rows or labels, before anything is trained on it.

The second derivative of a loss that is linear in pieces is zero, whatever it does to rows: a hinge
between pairs of rows, the largest losses of a batch. What it does shows when the other rows are
exchanged. Weights by class show when labels are, however few classes the first batch has.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adaptmix import Segments
from adaptmix.trainers import IGNORED, halves, over_rows, own_randomness
from adaptmix_transformers._recognition import proportional, tolerance

# What may be copied of a trainer: what compute_loss counts and collects.
_COUNTED = (bool, int, float, str, list, dict, set, tuple)


def exchanged(
    inputs: Mapping[str, Any], *, rows: int, seed: int, segments: Segments | None = None
) -> tuple[dict[str, Any], Tensor]:
    """Return inputs of which half of the rows are copies of others, and the (B,) kept ones.

    Packed rows stay where they are, and half of them get other tokens.

    Args:
        inputs: of a micro-batch; what has ``rows`` entries, or a multiple, is by row.
        rows: B.
        seed: of what is drawn.
        segments: where rows are packed; None where they are not.
    """
    kept, generator = halves(rows, seed)
    if segments is not None:
        return _retold(inputs, over_rows(kept, segments.ids, segments), generator), kept
    source = torch.where(
        kept, torch.arange(rows), torch.randint(rows, (rows,), generator=generator)
    )

    def change(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) % rows == 0 and len(value):
            blocks = torch.arange(len(value) // rows).repeat_interleave(rows) * rows
            return value[(source.repeat(len(value) // rows) + blocks).to(value.device)]
        if isinstance(value, list) and len(value) == rows:
            return [value[i] for i in source.tolist()]
        if isinstance(value, Mapping):
            return {name: change(part) for name, part in value.items()}
        return value

    return {name: change(value) for name, value in inputs.items()}, kept


def _retold(inputs: Mapping[str, Any], kept: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """Return packed inputs with other tokens, and labels where there are labels, unless kept."""

    def change(name: str, value: Any) -> Any:
        if name not in ("input_ids", "labels") or value.shape != kept.shape:
            return value
        found = value[value != IGNORED].cpu()
        drawn = found[torch.randint(len(found), value.shape, generator=generator)].to(value)
        return torch.where(kept.to(value.device) | (value == IGNORED), value, drawn)

    return {name: change(name, value) for name, value in inputs.items()}


def relabelled(inputs: Mapping[str, Any], *, classes: int, seed: int) -> dict[str, Any]:
    """Return inputs with labels drawn from all classes where there are labels."""
    labels = inputs["labels"]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(classes, labels.shape, generator=generator).to(labels)
    return {**inputs, "labels": torch.where(labels == IGNORED, labels, drawn)}


def same_up_to_a_factor(
    before: list[Tensor], after: list[Tensor], kept: Tensor, segments: Segments | None = None
) -> bool:
    """Return whether the kept rows' gradients are the same but for one factor of all.

    A mean's divisor may change with the other rows; nothing else may.

    Args:
        before: gradients at each tensor, (k · B, …).
        after: the same once the other rows are exchanged.
        kept: (B,) bool.
        segments: where rows are packed; None where they are not.
    """
    pairs = []
    for first, second in zip(before, after, strict=True):
        rows = over_rows(kept, first, segments)
        pairs.append([part.masked_fill(~rows, 0.0).reshape(-1) for part in (first, second)])
    g, h = (torch.cat([pair[i] for pair in pairs]) for i in range(2))
    if not bool(g.any()) or not bool(h.any()):
        return bool(g.any()) == bool(h.any())
    return proportional(h.unsqueeze(0), g.unsqueeze(0), each=1) is not None


def halved(before: list[Tensor], after: list[Tensor]) -> bool:
    """Return whether gradients are half of what they were."""
    return all(
        bool((2.0 * second - first).norm() <= 0.1 * first.norm())
        for first, second in zip(before, after, strict=True)
    )


def same_values(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    kept: Tensor,
    segments: Segments | None = None,
) -> bool:
    """Return whether the kept rows of the tensors, which may be packed, are what they were."""
    if len(before) != len(after):
        return False
    for first, second in zip(before, after, strict=True):
        if first.shape != second.shape:
            return False
        rows = over_rows(kept, first, segments)
        first, second = (part.detach().masked_fill(~rows, 0.0) for part in (first, second))
        error = (first - second).abs().max()
        if not float(error) <= tolerance(first.dtype) * float(first.abs().max()):
            return False
    return True


@contextmanager
def unseen(trainer: Any, model: nn.Module, *, seed: int) -> Iterator[None]:
    """Leave no trace of what runs inside: in random states, tensors, counters, or processes.

    Tensors are the model's buffers, and what the trainer keeps beside it: a queue, running means,
    or a teacher that follows the model.

    Random numbers inside are those that the forward pass before it had.

    Args:
        trainer: whose attributes are given back.
        model: what it calls; under DistributedDataParallel nothing is sent.
        seed: of what is drawn inside.
    """
    attributes = {
        name: (value, copy.deepcopy(value))
        for name, value in vars(trainer).items()
        if isinstance(value, _COUNTED) and _plain(value)
    }
    held = dict(vars(trainer))
    tensors = [(tensor, tensor.detach().clone()) for tensor in _kept(held, model)]
    # Rows meet in the statistics of a batch, whatever the loss is; running ones keep them apart.
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    no_sync: Callable[[], Any] | None = getattr(model, "no_sync", None)
    silent = nullcontext() if no_sync is None else no_sync()
    with silent, own_randomness(seed), _device_randomness(seed):
        try:
            yield
        finally:
            for norm in norms:
                norm.train()
            with torch.no_grad():
                for tensor, before in tensors:
                    tensor.copy_(before)
            for name in [name for name in vars(trainer) if name not in held]:
                delattr(trainer, name)
            for name, value in held.items():
                setattr(trainer, name, value)
            for name, (value, copied) in attributes.items():
                setattr(trainer, name, _restored(value, copied))


@contextmanager
def _device_randomness(seed: int) -> Iterator[None]:
    """Draw with a fixed seed on the device in use, if any, and leave its state as it was."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng([torch.cuda.current_device()] if used else []):
        if used:
            torch.cuda.manual_seed(seed)
        yield


def _kept(held: Mapping[str, Any], model: nn.Module) -> list[Tensor]:
    """Return the tensors that may change in a forward pass and a loss, without the model's own."""
    own = {id(parameter) for parameter in model.parameters()}
    found = {id(buffer): buffer for buffer in model.buffers()}
    for value in held.values():
        parts = [value] if isinstance(value, Tensor) else []
        if isinstance(value, nn.Module):
            parts = [*value.parameters(), *value.buffers()]
        found |= {id(part): part for part in parts if id(part) not in own}
    return list(found.values())


def _restored(value: Any, copied: Any) -> Any:
    """Give a collection its contents back, which others may hold too; return it."""
    if isinstance(value, list):
        value[:] = copied
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(copied)
    else:
        return copied
    return value


def _plain(value: Any) -> bool:
    """Return whether a value is numbers and texts all the way down, and so can be copied."""
    if isinstance(value, dict):
        return all(_plain(part) for part in (*value, *value.values()))
    if isinstance(value, (list, set, tuple)):
        return all(_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))
