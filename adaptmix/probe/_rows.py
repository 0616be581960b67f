"""How the tensors of a forward run over samples, by what operations do to their first dim."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptmix.probe._tracked import NO_ROWS, ONE_EACH, UNKNOWN, Marks, Rows, samples_first

# Operations whose first dim is another one than that of their input.
_TURNING = frozenset({"transpose", "permute", "t", "movedim", "swapaxes", "swapdims", "moveaxis"})
_RESHAPING = frozenset({"view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze"})
_PICKING = frozenset({"__getitem__", "index_select"})
_TAKING = frozenset({"unbind", "select", "__getitem__"})
_PACKING = frozenset({"_pack_padded_sequence", "_pad_packed_sequence"})
_COUNTING = frozenset({"arange", "range", "linspace", "logspace", "eye", "tril_indices"})
EXPANDING = frozenset({"expand", "expand_as", "broadcast_to", "repeat"})


class RowTracker:
    """Follows rows through a forward.

    A tensor of which nothing is known has the samples first where there are as many. That this is
    so is proved elsewhere, by gradients.

    Attributes:
        samples: n, the first dim of what the outermost module was called with.
        attention: number of samples inside PyTorch's attention, where positions come first.
        buffers: identities of the model's buffers.
    """

    def __init__(self) -> None:
        self.samples: int | None = None
        self.attention: int | None = None
        self.buffers: frozenset[int] = frozenset()
        self._marks = Marks()
        self._turned = Marks()  # of tensors whose rows are along the second dim
        self._known: dict[int, None] = {}  # numbers of rows of each sample that were met

    def forget(self) -> None:
        """Forget the tensors of a micro-batch."""
        self._marks.clear()
        self._turned.clear()
        self._known.clear()

    def rows(self, tensor: Tensor) -> Rows | None:
        """Return how a tensor runs over samples; None where it has none, as far as is known."""
        if self.attention == UNKNOWN:
            return None
        if self.attention is not None:
            return Rows(arrange=partial(samples_first, self.attention))
        if self._is_constant(tensor):
            return None
        known = self._marks.get(tensor)
        if known is None and tensor.ndim and tensor.shape[0] == self.samples:
            known = ONE_EACH
        return known

    def made(self, name: str, outputs: Sequence[Tensor]) -> None:
        """Note what is made of numbers alone: where they are counted, they have no samples."""
        if name in _COUNTING:
            self.note(outputs[0], NO_ROWS)

    def note(self, tensor: Tensor, rows: Rows) -> None:
        """Note how a tensor runs over samples."""
        self._marks.set(tensor, rows)

    def keep(self, taken: Tensor, output: Tensor, rows: Rows) -> None:
        """Note that the output of a layer runs over samples as what it took does."""
        if rows.arrange is not None or not output.ndim or output.shape[0] != taken.shape[0]:
            return
        if rows is not ONE_EACH or output.shape[0] != self.samples:
            self._marks.set(output, rows)

    def _is_constant(self, tensor: Tensor) -> bool:
        """Return whether a tensor is made of numbers and buffers alone, which have no samples."""
        return id(tensor) in self.buffers or self._marks.get(tensor) is NO_ROWS

    def expands(self, name: str, taken: Tensor, output: Tensor) -> bool:
        """Return whether an operation gives every row a copy of what it took."""
        return name in EXPANDING and (
            self.stacks(name, taken, output)
            or (
                output.ndim > 0
                and self._each(output.shape[0]) is not None
                and taken.shape[-output.ndim :] != output.shape
            )
        )

    def _each(self, rows: int) -> int | None:
        """Return how many of so many rows each sample has; None of a number that was not met."""
        return next((k for k in (1, *self._known) if k * (self.samples or 0) == rows), None)

    def mark(self, name: str, tensors: Sequence[Tensor], args: Any, outputs: list[Tensor]) -> None:
        """Note how the outputs of an operation on samples run over them."""
        if not tensors or self.samples is None or name == "__get__":
            return
        if name in _TURNING:
            self._mark_turned(tensors[0], outputs[0])
            return
        if name in _TAKING and (turned := self._turned.get(tensors[0])) is not None:
            for output in outputs:
                if output.shape == tensors[0].shape[1:]:
                    self._marks.set(output, turned)
            return
        if name in _PACKING:
            self._mark_packed(name, tensors, args, outputs)
            return
        if name in _PICKING:
            self._mark_picked(tensors[0], args, outputs[0])
            return
        if self.expands(name, tensors[0], outputs[0]) and self.rows(tensors[0]) is None:
            self._marks.set(outputs[0], self.of_expansion(name, tensors[0], outputs[0]))
            return
        if all(self._is_constant(tensor) for tensor in tensors):
            for output in outputs:
                self._marks.set(output, NO_ROWS)
            return
        marked = [(t, known) for t in tensors if (known := self._marks.get(t)) is not None]
        for output in outputs:
            if not output.ndim:
                continue
            size = output.shape[0]
            if name in _RESHAPING and size != self.samples:
                rows = self.rows(tensors[0])
                whole = size and size % self.samples == 0
                if rows is not None and rows.ids is None and rows.arrange is None and whole:
                    each = size // self.samples
                    self._known.setdefault(each)
                    self._marks.set(output, Rows(each))
                    continue
                if rows is ONE_EACH and size and self.samples % size == 0:
                    self._marks.set(output, ONE_EACH)  # rows of a sample side by side
                    continue
            for tensor, known in marked:
                if tensor.ndim and tensor.shape[0] == size:
                    self._marks.set(output, known)
                    break

    def _mark_turned(self, taken: Tensor, output: Tensor) -> None:
        """Follow rows that are not one to a sample to the first dim of a view, or to its second.

        From there they come back where the first is taken apart, as that of queries, keys and
        values is.
        """
        rows = self._marks.get(taken)
        if rows is None or rows is NO_ROWS or not taken.ndim or output.ndim != taken.ndim:
            return
        theirs = taken.shape[0], taken.stride(0)
        places = [d for d in range(output.ndim) if (output.shape[d], output.stride(d)) == theirs]
        if places == [0]:
            self._marks.set(output, rows)
        elif places == [1]:
            self._turned.set(output, rows)

    def _mark_packed(
        self, name: str, tensors: Sequence[Tensor], args: Any, outputs: list[Tensor]
    ) -> None:
        """Keep the order of rows in the sizes of packed batches, which go with them everywhere."""
        first, sizes = tensors[0], outputs[1] if name == "_pack_padded_sequence" else tensors[1]
        rows = self.rows(first) if name == "_pack_padded_sequence" else self._marks.get(sizes)
        if rows is not None:
            self.note(sizes, rows)
            if name == "_pad_packed_sequence" and args[2]:  # rows first
                self.note(outputs[0], rows)

    def _mark_picked(self, taken: Tensor, args: Any, output: Tensor) -> None:
        rows, samples = self.rows(taken), self.samples
        if rows is None or rows.arrange is not None or samples is None or not output.ndim:
            return
        where = args[-1]
        where = where[0] if isinstance(where, tuple) and where else where
        if len(args) > 2 and args[1] != 0:  # index_select along another dim
            where = None
        if isinstance(where, Tensor) and where.ndim and where.dtype != torch.uint8:
            if where.dtype == torch.bool or where.ndim == 1:
                self._marks.set(output, rows.picked(where, samples))
        elif len(output) == len(taken):
            self._marks.set(output, rows)

    def of_expansion(self, name: str, taken: Tensor, output: Tensor) -> Rows:
        """Return how what is repeated for every sample runs over them."""
        if self.stacks(name, taken, output):
            return Rows(len(taken))
        each = self._each(len(output)) or 1
        return ONE_EACH if each == 1 else Rows(each)

    def stacks(self, name: str, taken: Tensor, output: Tensor) -> bool:
        """Return whether an operation repeats a whole tensor for every sample along its dim."""
        if (
            name != "repeat"
            or not taken.ndim
            or not output.ndim
            or output.shape[1:] != taken.shape[1:]
        ):
            return False
        return output.shape[0] == taken.shape[0] * (self.samples or 0)
