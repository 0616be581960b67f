"""A training step done again on other rows, before anything is trained on it.

What couples rows may leave no trace in the graph: mixup, masks made of losses, weights that are
counted in a batch. It shows when the rows beside a row are exchanged.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from adaptmix.errors import ObjectiveError
from adaptmix.trainers import WeightedHead, halves, leaving_no_trace, random_state, tensors_of
from adaptmix_lightning import _internals as internals

_log = logging.getLogger("adaptmix")
_SEEDS = (0, 1)  # halves of the rows that are exchanged in turn
_SILENT = ("log", "log_dict", "print")

Step = Callable[..., Any]


def rehearse(
    step: Step,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    module: LightningModule,
    head: WeightedHead | None,
    rows: int,
) -> ObjectiveError | None:
    """Compute the losses of a batch on other rows, and leave no trace.

    Args:
        step: the module's own ``training_step``.
        args: of it.
        kwargs: of it.
        module: the module.
        head: where rows are weighted; None where losses are unreduced.
        rows: B.

    Returns:
        What to raise where the loss of a row depends on the rows beside it.
    """
    given = (args, dict(kwargs))
    if rows < 2 or any(tensor.ndim and len(tensor) != rows for tensor in tensors_of(given)):
        return None  # which rows are of which samples is not known

    def again(source: Tensor) -> _Shown | None:
        try:
            with _unseen(module):
                return _shown(step, _picked(given, source, rows), head, rows)
        except Exception as error:  # inputs that cannot be changed so tell nothing
            _log.debug("The training step cannot be done on changed rows: %s", error)
            return None

    own = torch.arange(rows)
    first = again(own)
    if first is None:
        return None
    for seed in _SEEDS:
        kept, generator = halves(rows, seed)
        # Copies of one row move medians and counts further than copies of many.
        copied = own[kept][torch.randint(int(kept.sum()), (1,), generator=generator)]
        other = again(torch.where(kept, own, copied))
        if other is None or _same(first.tensors, other.tensors, kept):
            continue
        if not torch.equal(first.random, other.random):
            continue  # other rows take more or fewer random numbers, so all of them differ
        second = again(own)
        if second is not None and _same(first.tensors, second.tensors, torch.ones_like(kept)):
            return ObjectiveError(
                "The loss must be a sum of one term per row; in this one "
                f"{'losses' if head is None else 'outputs or gradients'} of rows change with "
                "the rows beside them, as with mixup, masks made of losses, and weights that "
                "are counted in a batch. Compute a row's loss from the row alone, or train "
                'with AdaptMixCallback(mode="observe"), which changes nothing.'
            )
    return None


class _Shown(NamedTuple):
    """Tensors of B rows that a row must determine alone, and where random numbers stopped."""

    tensors: list[Tensor]
    random: Tensor


def _shown(
    step: Step, given: tuple[Any, Any], head: WeightedHead | None, rows: int
) -> _Shown | None:
    """Return what a training step makes of a batch; None where it has no losses of rows."""
    args, kwargs = given
    if head is not None:
        head.open(torch.ones(rows))
    try:
        output = step(*args, **kwargs)
        random = random_state()
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            return None
        if head is None:
            return _Shown([loss.detach()], random) if loss.ndim and len(loss) == rows else None
        made = head.close()
        gradient = torch.autograd.grad(loss, made)[0]
        return _Shown([made.detach(), gradient], random) if len(made) == rows else None
    finally:
        if head is not None:
            head.forget_backward()


def _picked(value: Any, source: Tensor, rows: int) -> Any:
    """Return a copy of a batch, of other rows: a training step may change its own."""
    if isinstance(value, Tensor):
        return value[source.to(value.device)] if value.ndim else value.clone()
    if isinstance(value, MutableMapping):
        picked = copy.copy(value)
        for name, part in value.items():
            picked[name] = _picked(part, source, rows)
        return picked
    if isinstance(value, (list, tuple)):
        if len(value) == rows and not any(True for _ in tensors_of(value)):
            parts = [value[i] for i in source.tolist()]
        else:
            parts = [_picked(part, source, rows) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _same(first: list[Tensor], other: list[Tensor], kept: Tensor) -> bool:
    """Return whether the kept rows are what they were, up to rounding."""
    for before, after in zip(first, other, strict=True):
        if before.shape != after.shape:
            return False
        mine = kept.to(before.device)
        error = (before[mine] - after[mine]).abs().max()
        rounding = max(1e-4, 8.0 * torch.finfo(before.dtype).eps)
        if not float(error) <= rounding * float(before[mine].abs().max()):
            return False
    return True


@contextmanager
def _unseen(module: LightningModule) -> Iterator[None]:
    """Leave no trace of what runs inside, and log nothing of it."""
    ignored = vars(LightningModule()).keys()
    with leaving_no_trace(module, seed=0, ignored=ignored), internals.silent_loggers(module):
        for name in _SILENT:
            vars(module)[name] = lambda *_, **__: None
        yield
