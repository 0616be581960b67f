"""Whether the rows of a batch enter a model in the order that the batch has them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptmix.errors import ObjectiveError

# Rows that are looked for, and numbers of a row that they are known by.
_ROWS, _NUMBERS = 8, 512


@contextmanager
def refusing_moved_rows(model: nn.Module, tensors: Sequence[Tensor], rows: int) -> Iterator[None]:
    """Watch one forward pass for a tensor of the batch whose rows come in another order.

    What a model is given is compared with the batch itself: rows that a module gets as they are
    show where they come from. Rows that are changed before any module sees them show nothing.

    Args:
        model: whose modules are watched.
        tensors: of the batch.
        rows: B.

    Raises:
        ObjectiveError: rows come in another order, and nowhere in that of the batch.
    """
    given = [t for t in tensors if t.ndim and len(t) == rows > 1 and not bool((t == t[0]).all())]
    found: dict[str, str] = {}

    def before(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if "kept" in found:
            return
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim and len(value) == rows:
                for tensor in given:
                    if tensor.shape == value.shape and tensor.device == value.device:
                        found.setdefault(_compared(value.detach(), tensor), name)

    hooks = [
        module.register_forward_pre_hook(
            partial(before, name or type(module).__name__), with_kwargs=True
        )
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if "moved" in found and "kept" not in found:
        raise ObjectiveError(
            f"training_step must keep rows in the order of the batch; module {found['moved']!r} "
            "got them in another, and so they would be weighted as rows of other domains. Do not "
            "sort or shuffle rows: pack_padded_sequence(..., enforce_sorted=False) sorts and puts "
            "them back by itself."
        )


def _compared(value: Tensor, tensor: Tensor) -> str:
    """Return "kept", "moved" or "other" for a module's input and a tensor of the batch."""
    here, there = (t.reshape(len(t), -1) for t in (value, tensor))
    there = there.to(here.dtype)
    if torch.equal(here, there):
        return "kept"
    step = max(1, here.shape[1] // _NUMBERS)
    some, there = here[:_ROWS, ::step], there[:, ::step]
    same = (some.unsqueeze(1) == there.unsqueeze(0)).all(2)
    return "moved" if bool(same.any(1).all()) else "other"
