"""Collation of numbered rows: the batch, its number, and what was found out about its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import Dataset, default_collate

from adaptmix.data._content import unpacked
from adaptmix.data._mixture import Mixture
from adaptmix.data._order_proof import Proof, prove_order, rows_at
from adaptmix.data._packing import find_segments
from adaptmix.data._randomness import seeded
from adaptmix.data._segments import Segments


class DrawnRows(list[int]):
    """Rows of one micro-batch that know its number, also in a worker process.

    Args:
        rows: of the mixture.
        ordinal: number of the micro-batch.
        part: number of the process's micro-batch among those of all processes.
        read: the rows that are of streams, by their place; ``Packed`` where another process read
            them, or where they are held out and given again.
    """

    def __init__(
        self, rows: list[int], ordinal: int, part: int, read: Mapping[int, Any] | None = None
    ) -> None:
        super().__init__(rows)
        self.ordinal, self.part, self.read = ordinal, part, read or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self), self.ordinal, self.part, self.read)


class NumberedRows(Dataset[Any]):
    """A mixture whose batches carry their micro-batch's number, whatever loader fetches them.

    Args:
        mixture: the rows.
        seed: of what they draw at random; they draw from the process's generators when None.
    """

    def __init__(self, mixture: Mixture, *, seed: int | None = None) -> None:
        self.mixture, self.seed = mixture, seed

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, row: int) -> Any:
        return self.mixture[row]

    def __getitems__(self, rows: DrawnRows) -> tuple[list[Any], Number]:
        """Return the rows' items and the number of the micro-batch."""
        number = Number(rows.ordinal)
        number.part = rows.part
        with seeded(self.seed, rows.part, 0):
            return self._items(rows), number

    def _items(self, rows: DrawnRows) -> list[Any]:
        if not rows.read:
            return self.mixture.__getitems__(rows)
        stored = [row for place, row in enumerate(rows) if place not in rows.read]
        others = iter(self.mixture.__getitems__(stored) if stored else [])
        return [
            unpacked(rows.read[place]) if place in rows.read else next(others)
            for place in range(len(rows))
        ]


class Number(int):
    """A micro-batch's number, with what collating it has shown.

    Attributes:
        part: number of the process's micro-batch among those of all processes.
        fault: why the batch must not be trained, or None.
        unclear: whether it could not be shown that rows keep their order.
        segments: where rows are that were packed into fewer; None where they were not.
    """

    part: int = 0
    fault: str | None = None
    unclear: bool = False
    segments: Segments | None = None


class CheckedCollate:
    """Collates numbered rows, and proves that the collator keeps their order and number.

    The order is proved in each process, on its first, second, fourth, … batch; what the
    number of rows can be read from is known from there, and looked at in every batch. What is
    found travels with the number, so that the training process says it. A class and not a
    function, so that worker processes can be spawned with it.

    Args:
        collate_fn: the user's, or None for PyTorch's own, which needs no proof.
        seed: of what it draws at random; it draws from the process's generators when None.
    """

    def __init__(
        self, collate_fn: Callable[[list[Any]], Any] | None, *, seed: int | None = None
    ) -> None:
        self.seed = seed
        self.collate_fn = default_collate if collate_fn is None else collate_fn
        self._batches = 0
        self._proof = Proof()

    def __call__(self, numbered: tuple[list[Any], Number]) -> tuple[Any, Number]:
        """Return the batch of the numbered rows, and the number."""
        rows, number = numbered
        size = len(rows)
        self._batches += 1
        if self.collate_fn is not default_collate and _is_power_of_two(self._batches):
            self._proof = prove_order(self.collate_fn, rows)
        with seeded(self.seed, number.part, 1):
            batch = self.collate_fn(rows)
        number.segments = find_segments(rows, batch)
        if number.segments is None:
            number.fault = self._proof.fault or self._miscount(batch, size)
            number.unclear = self._proof.unclear
        return batch, number

    def _miscount(self, batch: Any, size: int) -> str | None:
        if batch is None:
            return (
                f"collate_fn must make a batch of its {size} rows; got None. The rows were drawn "
                "for the objective, and leaving them out would leave out their domains. Return a "
                "batch of placeholder rows, or take unreadable rows out of the dataset beforehand."
            )
        if not self._proof.kept:
            return None
        found = rows_at(batch, self._proof.kept[0])
        if found == size:
            return None
        return (
            f"collate_fn must return all {size} rows it is given; got a batch of {found}. Return "
            "a placeholder row in the place of one that cannot be used (masked out of its loss), "
            "or take such rows out of the dataset before making the mixture."
        )


class NumberedCollate(CheckedCollate):
    """A ``CheckedCollate`` that writes the number into the batch.

    Args:
        collate_fn: of the loader that is replaced.
        key: under which the number goes into the batch, which must be a mapping.
        seed: as for ``CheckedCollate``.
    """

    def __init__(self, collate_fn: Any, key: str, *, seed: int | None = None) -> None:
        super().__init__(collate_fn, seed=seed)
        self.key = key

    def __call__(self, numbered: tuple[list[Any], Number]) -> Any:
        """Return the batch of the numbered rows."""
        batch, number = super().__call__(numbered)
        if not hasattr(batch, "keys"):
            raise TypeError(
                f"collate_fn must return a mapping of tensors; got {type(batch).__name__}."
            )
        batch[self.key] = number
        return batch


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
