"""What is known of a forward's tensors: how they run over samples, and what they are made of."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from adaptmix.data._segments import Segments
from adaptmix.errors import ObjectiveError
from adaptmix.probe._coverage import Layer
from adaptmix.probe._operations import PerSample

Arrange = Callable[[Tensor], Tensor]
"""Puts the samples first: (n, …), or (rows, …) of rows whose samples are told apart."""


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor that is made of parameters alone.

    Args:
        tensor: it.
        leaves: {number: parameter} that it is made of.
        looked_up: options of the embedding that it is the output of, where it is of a parameter.
    """

    tensor: Tensor
    leaves: Mapping[int, Tensor]
    looked_up: Mapping[str, Any] | None = None

    def pulled_back(self, gradients: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (number, (n, *shape) gradients) of the parameters, given those of the tensor."""
        if self.tensor.grad_fn is None:
            yield next(iter(self.leaves)), gradients
            return
        leaves = list(self.leaves.values())
        found = [
            torch.autograd.grad(
                self.tensor,
                leaves,
                gradient.to(self.tensor.dtype),
                retain_graph=True,
                materialize_grads=True,
            )
            for gradient in gradients
        ]
        for index, *parts in zip(self.leaves, *found, strict=True):
            yield index, torch.stack(parts)


@dataclass(frozen=True, eq=False)
class Use:
    """What one operation took of parameters, and the gradients of samples with respect to it."""

    sources: tuple[Source, ...]
    per_sample: PerSample

    def gradients(self, gradient: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (number, (n, *shape) gradients) of parameters, given that of the output."""
        for source, found in zip(self.sources, self.per_sample(gradient), strict=True):
            yield from source.pulled_back(found)


class Listener(Protocol):
    """What is told of calls."""

    def on_call(
        self,
        layer: Layer,
        inputs: Sequence[Tensor],
        output: Tensor,
        rows: Rows,
        pad: Padding = ...,
    ) -> None:
        """Take in a call of a layer."""

    def on_operation(
        self, uses: Sequence[Use], inputs: Sequence[Tensor], output: Tensor, rows: Rows
    ) -> None:
        """Take in an operation."""

    def refuse(self, indices: Sequence[int]) -> None:
        """Leave out parameters whose use cannot be followed."""


@dataclass(frozen=True, eq=False)
class Rows:
    """How the first dim of a tensor runs over samples.

    Args:
        each: rows of each sample, one sample after the other.
        ids: (rows,) the sample of each row, where they are in no such order.
        places: (rows,) which of its sample's rows each of them was, beside ``ids``.
        arrange: puts samples first where positions are, in PyTorch's attention.
    """

    each: int = 1
    ids: Tensor | None = None
    arrange: Arrange | None = None
    places: Tensor | None = None

    def first(self, values: Tensor) -> Tensor:
        """Return (n, …) values of tensors of such rows, or (rows, …) with ``ids``."""
        if self.arrange is not None:
            return self.arrange(values)
        if self.ids is not None or self.each == 1:
            return values
        return values.reshape(-1, self.each, *values.shape[1:])

    def packed_in(self, segments: Segments) -> Tensor | None:
        """Return the packed sample of each row that was picked, −1 of none; None if unknown."""
        if self.ids is None or self.places is None:
            return None
        return segments.ids.to(self.ids.device)[self.ids, self.places]

    def picked(self, where: Tensor, samples: int) -> Rows:
        """Return the rows that an index, or a mask, picks."""
        device = where.device
        ids, places = self.ids, self.places
        if ids is None:
            ids = torch.arange(samples, device=device).repeat_interleave(self.each)
            places = torch.arange(self.each, device=device).repeat(samples)
        if where.dtype == torch.bool:
            if where.ndim > 1:  # the second dim of a mask is of positions, if each row is one
                of_row = torch.arange(where.shape[1:].numel(), device=device)
                alone = self.each == 1 and self.ids is None
                places = of_row.expand(len(where), -1).reshape(where.shape) if alone else None
            ids = ids.reshape(-1, *[1] * (where.ndim - 1)).expand(where.shape)
        return Rows(ids=ids[where], places=None if places is None else places[where])


ONE_EACH = Rows()
NO_ROWS = Rows(each=0)
UNKNOWN = -1  # samples, of an attention over inputs without a dim of them


@dataclass(frozen=True)
class Padding:
    """Where the rows of a weight that a call uses are among all of its rows."""

    before: int = 0
    after: int = 0
    of_inputs: bool = False

    def inputs(self, values: Tensor) -> Tensor:
        """Return features of inputs with zeros where the weight has rows that are not used."""
        return self._padded(values) if self.of_inputs else values

    def outputs(self, values: Tensor) -> Tensor:
        """Return features of outputs with zeros where the weight has rows that are not used."""
        return values if self.of_inputs else self._padded(values)

    def _padded(self, values: Tensor) -> Tensor:
        if not self.before and not self.after:
            return values
        return functional.pad(values, (self.before, self.after))


WHOLE = Padding()


class Marks:
    """Notes on tensors that do not keep them alive."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[weakref.ref[Tensor], Rows]] = {}

    def get(self, tensor: Tensor) -> Rows | None:
        """Return what is noted of a tensor."""
        note = self._notes.get(id(tensor))
        return note[1] if note is not None and note[0]() is tensor else None

    def set(self, tensor: Tensor, rows: Rows) -> None:
        """Note how a tensor runs over samples."""
        self._notes[id(tensor)] = (weakref.ref(tensor), rows)

    def clear(self) -> None:
        """Forget all notes."""
        self._notes.clear()


def matrix_rows(source: Source, *, turned: bool) -> Padding | None:
    """Return which rows of a parameter a weight is, or of its transpose; None for other weights.

    A parameter of more dims is a matrix of as many columns as its last dim has.

    Args:
        source: the weight, (out, in).
        turned: whether it is (in, out).
    """
    weight, (parameter, *more) = source.tensor, source.leaves.values()
    if more or weight.ndim != 2 or parameter.ndim < 2 or not parameter.is_contiguous():
        return None
    if weight is not parameter and weight._base is not parameter:
        return None
    columns = parameter.shape[-1]
    if weight.stride() == (columns, 1) and weight.shape[1] == columns:
        count, flipped = weight.shape[0], False
    elif weight.stride() == (1, columns) and weight.shape[0] == columns:
        count, flipped = weight.shape[1], True
    else:
        return None
    start = (weight.storage_offset() - parameter.storage_offset()) // columns
    after = parameter.numel() // columns - start - count
    return Padding(start, after, of_inputs=turned != flipped)


def samples_first(samples: int, values: Tensor) -> Tensor:
    """Return (B, T, features) of (T, B, features) or (T · B, features)."""
    return values.reshape(-1, samples, values.shape[-1]).transpose(0, 1)


def second_first(values: Tensor) -> Tensor:
    """Return (B, layers, …) of (layers, B, …)."""
    return values.transpose(0, 1)


def tensors_of(values: Any) -> list[Tensor]:
    """Return the tensors among an operation's arguments, and in sequences among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += [part for part in value if isinstance(part, Tensor)]
    return found


def check_rows(sizes: Counter[int], number: int, samples: Tensor | None) -> None:
    """Check that the model ran rows that samples are known of.

    Args:
        sizes: how many layer calls took inputs of each number of rows.
        number: B, of samples.
        samples: (R,) the sample of each row, or None.

    Raises:
        ObjectiveError: it ran others.
    """
    told = number if samples is None else len(samples)
    if not sizes or sizes[told] or (samples is None and sizes[number]):
        return
    rows = sizes.most_common(1)[0][0]
    k = max(1, rows // number)
    raise ObjectiveError(
        f"The model must run the {told} rows {'drawn' if samples is None else 'of samples'}; its "
        f"layers ran {rows}, so the gradients of samples cannot be told apart. Say which row of "
        f"the draw each of the {rows} is of: samples=torch.arange({number}).repeat({k}) where the "
        "draw's rows come over and over (all chosen answers, then all rejected ones), "
        f"samples=torch.arange({number}).repeat_interleave({k}) where copies of a row follow each "
        "other. Rows packed into one need segments=, and models start with the dim of rows."
    )
