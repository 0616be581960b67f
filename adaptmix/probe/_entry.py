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


class Entry:
    """Watches what modules are given, and compares it with a batch.

    Rows that a module gets as they are show where they come from. Rows that are changed before any
    module sees them show nothing.

    Args:
        model: whose modules are watched, until ``close()``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors: list[Tensor] = []
        self._rows = 0
        self._found: dict[str, str] = {}
        self._hooks = [
            module.register_forward_pre_hook(
                partial(self._before, name or type(module).__name__), with_kwargs=True
            )
            for name, module in model.named_modules()
        ]

    def compare(self, tensors: Sequence[Tensor], rows: int) -> None:
        """Compare what comes from now on with a batch.

        Args:
            tensors: of the batch.
            rows: B.
        """
        self._rows = rows
        self._tensors = [t.detach() for t in tensors if t.ndim and len(t) == rows > 1 and _told(t)]

    def check(self, whose: str) -> None:
        """Refuse rows that came in another order, and nowhere in that of the batch.

        Args:
            whose: what the user wrote that gives rows to the model.

        Raises:
            ObjectiveError: they did.
        """
        if "moved" in self._found and "kept" not in self._found:
            raise ObjectiveError(
                f"{whose} must keep rows in the order of the batch; module "
                f"{self._found['moved']!r} got them in another, and so they would be weighted as "
                "rows of other domains. Do not sort or shuffle rows: "
                "pack_padded_sequence(..., enforce_sorted=False) sorts and puts them back by "
                "itself."
            )

    def close(self) -> None:
        """Take the hooks off; a second call does nothing."""
        hooks, self._hooks, self._tensors = self._hooks, [], []
        for hook in hooks:
            hook.remove()

    def _before(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if "kept" in self._found:
            return
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim and len(value) == self._rows:
                for tensor in self._tensors:
                    if tensor.shape == value.shape:
                        self._found.setdefault(_compared(value.detach(), tensor), name)


@contextmanager
def refusing_moved_rows(model: nn.Module, tensors: Sequence[Tensor], rows: int) -> Iterator[None]:
    """Watch one forward pass in ``training_step`` for rows that come in another order.

    Args:
        model: whose modules are watched.
        tensors: of the batch.
        rows: B.

    Raises:
        ObjectiveError: rows come in another order, and nowhere in that of the batch.
    """
    entry = Entry(model)
    entry.compare(tensors, rows)
    try:
        yield
    finally:
        entry.close()
    entry.check("training_step")


def _compared(value: Tensor, tensor: Tensor) -> str:
    """Return "kept", "moved" or "other" for a module's input and a tensor of the batch."""
    here, there = (t.reshape(len(t), -1) for t in (value, tensor))
    there = there.to(here)
    if torch.equal(here, there):
        return "kept"
    step = max(1, here.shape[1] // _NUMBERS)
    some, there = here[:_ROWS, ::step], there[:, ::step]
    same = (some.unsqueeze(1) == there.unsqueeze(0)).all(2)
    own = bool(same.diagonal().all())  # the others may have been changed
    return "moved" if bool(same.any(1).all()) and not own else "other"


def _told(tensor: Tensor) -> bool:
    """Return whether all rows differ: of equal ones nobody can tell which is which."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_complex():
        return False
    if not tensor.numel() or (tensor.ndim == 1 and not tensor.is_floating_point()):
        return False  # a few numbers are met by chance
    try:
        return len(torch.unique(tensor, dim=0)) == len(tensor)
    except (RuntimeError, NotImplementedError):  # as for floats of 8 bits
        return False
