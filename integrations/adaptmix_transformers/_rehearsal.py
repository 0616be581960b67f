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

from adaptmix import Segments
from adaptmix.trainers import IGNORED, halves, leaving_no_trace, over_rows
from adaptmix_transformers._recognition import proportional, tolerance

_SMALL = 2**16  # numbers of a parameter that is nudged


def like(inputs: Any, given: Mapping[str, Any]) -> Any:
    """Return copies of what is given, which a loss may change, in the kind of mapping of inputs."""
    changed = copy.copy(inputs)
    for name, value in given.items():
        changed[name] = value.clone() if isinstance(value, Tensor) else copy.copy(value)
    return changed


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
    # Copies of one row move medians and counts further than copies of many.
    copied = kept.nonzero()[torch.randint(int(kept.sum()), (1,), generator=generator), 0]
    source = torch.where(kept, torch.arange(rows), copied)

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


def silenced(inputs: Mapping[str, Any], kept: Tensor) -> dict[str, Any] | None:
    """Return inputs in which the other rows keep one label; None where labels are not of tokens.

    Args:
        inputs: of a micro-batch.
        kept: (B,) bool, rows to leave alone.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        return None
    if len(labels) != len(kept):
        return None
    counted = labels != IGNORED
    later = counted & (counted.cumsum(1) > 1)
    dropped = later & ~kept.to(labels.device).unsqueeze(1)
    if not bool(dropped.any()) or bool(counted.all()):
        return None  # nothing marks labels as ignored, so they may be of no tokens
    return {**inputs, "labels": labels.masked_fill(dropped, IGNORED)}


def common_factor(
    before: list[Tensor], after: list[Tensor], kept: Tensor, segments: Segments | None = None
) -> float | None:
    """Return the one factor that kept rows' gradients changed by; None where there is none.

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
        return 1.0 if bool(g.any()) == bool(h.any()) else None
    factors = proportional(h.unsqueeze(0), g.unsqueeze(0), each=1)
    return None if factors is None else float(factors)


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
def nudged(model: nn.Module) -> Iterator[None]:
    """Change the small trainable parameters of a model for a while, and so its outputs.

    Args:
        model: that is trained.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    least = min((p.numel() for p in trained), default=0)
    small = [p for p in trained if p.numel() <= max(_SMALL, least)]
    kept = [p.detach().clone() for p in small]
    try:
        with torch.no_grad():
            for parameter in small:
                ramp = torch.linspace(-0.1, 0.1, parameter.numel()).to(parameter)
                parameter.mul_(1.2).add_(ramp.view_as(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(small, kept, strict=True):
                parameter.copy_(before)


@contextmanager
def unseen(trainer: Any, model: nn.Module, *, seed: int) -> Iterator[None]:
    """Leave no trace of what runs inside: in random states, tensors, counters, or processes.

    Given back is what ``leaving_no_trace`` gives back, of the model and of what the trainer keeps
    beside it: a queue, running means, or a teacher that follows the model.

    Args:
        trainer: whose attributes are given back.
        model: what it calls; under DistributedDataParallel nothing is sent.
        seed: of what is drawn inside.
    """
    no_sync: Callable[[], Any] | None = getattr(model, "no_sync", None)
    silent = nullcontext() if no_sync is None else no_sync()
    with silent, leaving_no_trace(model, trainer, seed=seed):
        yield
