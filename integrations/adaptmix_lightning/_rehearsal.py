"""A training step done again on other rows, before anything is trained on it.

What couples rows may leave no trace in the graph: mixup, masks made of losses, weights that are
counted in a batch. It shows when the rows beside a row are exchanged.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric

from adaptmix.errors import ObjectiveError
from adaptmix.trainers import WeightedHead, halves, own_randomness, tensors_of

_log = logging.getLogger("adaptmix")
_SEEDS = (0, 1)  # halves of the rows that are exchanged in turn
_SILENT = ("log", "log_dict")

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

    def again(given: tuple[Any, Any]) -> list[Tensor] | None:
        try:
            with _unseen(module):
                return _shown(step, given, head, rows)
        except Exception as error:  # inputs that cannot be changed so tell nothing
            _log.debug("The training step cannot be done on changed rows: %s", error)
            return None

    first = again(given)
    for seed in _SEEDS if first is not None else ():
        assert first is not None
        kept, generator = halves(rows, seed)
        drawn = torch.randint(rows, (rows,), generator=generator)
        other = again(_picked(given, torch.where(kept, torch.arange(rows), drawn), rows))
        if other is not None and not _same(first, other, kept):
            second = again(given)
            if second is not None and _same(first, second, torch.ones_like(kept)):
                return ObjectiveError(
                    "The loss must be a sum of one term per row; in this one "
                    f"{'losses' if head is None else 'outputs or gradients'} of rows change with "
                    "the rows beside them, as with mixup, masks made of losses, and weights that "
                    "are counted in a batch. Compute a row's loss from the row alone, or train "
                    'with AdaptMixCallback(mode="observe"), which changes nothing.'
                )
    return None


def _shown(
    step: Step, given: tuple[Any, Any], head: WeightedHead | None, rows: int
) -> list[Tensor] | None:
    """Return tensors of B rows that a row must determine alone."""
    args, kwargs = given
    if head is not None:
        head.open(torch.ones(rows))
    try:
        output = step(*args, **kwargs)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            return None
        if head is None:
            return [loss.detach()] if loss.ndim and len(loss) == rows else None
        made = head.close()
        gradient = torch.autograd.grad(loss, made)[0]
        return [made.detach(), gradient] if len(made) == rows else None
    finally:
        if head is not None:
            head.forget_backward()


def _picked(value: Any, source: Tensor, rows: int) -> Any:
    """Return a batch of other rows."""
    if isinstance(value, Tensor):
        return value[source.to(value.device)] if value.ndim else value
    if isinstance(value, Mapping):
        return {name: _picked(part, source, rows) for name, part in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        if len(value) == rows and not any(True for _ in tensors_of(value)):
            return type(value)(value[i] for i in source.tolist())
        return type(value)(_picked(part, source, rows) for part in value)
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
    """Leave no trace of what runs inside: in random states, tensors, counters, metrics or logs."""
    values = vars(module)
    held = {name: value for name, value in values.items() if name not in vars(LightningModule())}
    gathered = {name: _copied(value) for name, value in held.items()}
    frozen = [p for p in module.parameters() if not p.requires_grad]
    kept = [value for value in held.values() if isinstance(value, Tensor)]
    tensors = [(t, t.detach().clone()) for t in (*module.buffers(), *frozen, *kept)]
    metrics = [(m, _states(m)) for m in module.modules() if isinstance(m, Metric)]
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:  # rows meet in its statistics, whatever the loss is
        norm.eval()
    for name in _SILENT:
        values[name] = lambda *_, **__: None
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = [torch.cuda.current_device()] if used else []
    try:
        with own_randomness(0), torch.random.fork_rng(devices):
            yield
    finally:
        for name in set(values) - set(vars(LightningModule())) - set(held):
            del values[name]
        values |= {name: _restored(value, gathered[name]) for name, value in held.items()}
        for norm in norms:
            norm.train()
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)
        for metric, states in metrics:
            vars(metric).update(states)


def _copied(value: Any) -> Any:
    """Return a copy of what gathers things, with the same things in it."""
    if isinstance(value, (list, set, tuple)) and not hasattr(value, "_fields"):
        return type(value)([_copied(part) for part in value])
    if type(value) is dict:
        return {name: _copied(part) for name, part in value.items()}
    return value


def _restored(value: Any, copied: Any) -> Any:
    """Give a collection its contents back, which others may hold too; return it."""
    if isinstance(value, list):
        value[:] = copied
    elif isinstance(value, set) or type(value) is dict:
        value.clear()
        value.update(copied)
    return value


def _states(metric: Metric) -> dict[str, Any]:
    """Return copies of what a metric has gathered."""
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]
    return {name: copy.deepcopy(vars(metric)[name]) for name in names if name in vars(metric)}
