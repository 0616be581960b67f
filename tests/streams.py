"""Streams that several tests share; a row is its own number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import IterableDataset

from adaptmix import Controller, Mixture


class Plain(IterableDataset[Any]):
    """Rows in order; it has no state of its own, and tells what it was told and has read."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.size = start, size
        self.epochs: list[int] = []
        self.read = 0

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        for row in range(self.start, self.start + self.size):
            self.read += 1
            yield row


class Shuffled(Plain):
    """Rows in an order of each epoch, drawn from the generators that a process has."""

    def __iter__(self) -> Iterator[int]:
        for row in np.random.permutation(self.size).tolist():  # noqa: NPY002
            self.read += 1
            yield self.start + row


class Stateful(Plain):
    """Has the protocol of torchdata's StatefulDataLoader, on the dataset."""

    place = 0

    def __iter__(self) -> Iterator[int]:
        while self.place < self.size:
            self.place += 1
            self.read += 1
            yield self.start + self.place - 1
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class _Rows:
    def __init__(self, source: Plain) -> None:
        self.source, self.place = source, 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.place == self.source.size:
            raise StopIteration
        self.place += 1
        self.source.read += 1
        return self.source.start + self.place - 1

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class StatefulRows(Plain):
    """Has the protocol of torchdata's StatefulDataLoader, on the iterator."""

    def __iter__(self) -> Iterator[int]:
        return _Rows(self)


class Forgetful(Stateful):
    """Has a state that leads one row too far."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"] + (state["place"] > 0)


def hugging_face(start: int, size: int, *, shards: int = 1) -> Any:
    """Rows of a streaming dataset, their number in column "x"."""
    stored = datasets.Dataset.from_dict({"x": list(range(start, start + size))})
    return stored.to_iterable_dataset(num_shards=shards)


def shuffled(start: int, size: int, *, shards: int = 1) -> Any:
    """Rows that come through Hugging Face's shuffle buffer."""
    return hugging_face(start, size, shards=shards).shuffle(seed=3, buffer_size=24)


SOURCES: list[Callable[[int, int], Any]] = [
    Plain,
    Shuffled,
    Stateful,
    StatefulRows,
    Forgetful,
    hugging_face,
    shuffled,
]
"""Each makes a stream of rows from ``start`` on."""


def number_of(row: Any) -> int:
    """The number of a row of any of these."""
    return int(row["x"] if isinstance(row, dict) else row)


def collate(rows: list[Any]) -> torch.Tensor:
    """A batch of row numbers."""
    return torch.tensor([number_of(row) for row in rows])


def train(
    mixture: Mixture,
    steps: int,
    *,
    stop: int | None = None,
    state: dict[str, Any] | None = None,
    num_workers: int = 0,
    batch_size: int = 8,
    accumulation: int = 1,
    **options: Any,
) -> tuple[list[list[int]], dict[str, Any]]:
    """Train a run, or go on with one, and return the rows of its micro-batches and its state.

    Args:
        mixture: of the run.
        steps: of the whole run.
        stop: after how many steps to leave; at its end when None.
        state: to go on with.
        num_workers: of the loader.
        batch_size: of the loader.
        accumulation: of the loader.
        options: of the controller.
    """
    controller = Controller(mixture, policy=options.pop("policy", "static"), **options)
    if state is not None:
        controller.load_state_dict(state)
    weight = torch.ones((), requires_grad=True)
    rows = []
    loader = controller.loader(
        batch_size,
        steps=steps,
        num_workers=num_workers,
        collate_fn=collate,
        accumulation=accumulation,
    )
    for micro, batch in enumerate(loader, start=1):
        rows.append(batch.tolist())
        controller.loss(weight * batch).backward()
        if micro % accumulation == 0:
            controller.step()
            if controller.completed == stop:
                break
    return rows, controller.state_dict()


def flat(batches: Iterable[Sequence[int]]) -> list[int]:
    """All rows in one list."""
    return [row for batch in batches for row in batch]
