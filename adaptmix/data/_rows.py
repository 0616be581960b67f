"""Which row: what turns "the next n of a domain" into rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adaptmix.data._mixture import Mixture
from adaptmix.data._permutation import Feistel, Table, permutation


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of one domain.

    Attributes:
        rows: (n,) int64 rows of the mixture.
        fresh: (n,) bool, whether the run draws the row for the first time.
    """

    rows: NDArray[np.int64]
    fresh: NDArray[np.bool_]


class RowSource(Protocol):
    """Gives the rows of one domain, one after the other."""

    def take(self, start: int, count: int) -> Rows:
        """Return ``count`` rows, after the ``start`` that were drawn since the run began."""


class PermutedRows:
    """The rows of a map-style dataset's domain, without replacement.

    They come in a new random order each time the domain is used up. Which row is drawn depends on
    how many were drawn before, and on nothing else.

    Args:
        mixture: where rows come from.
        domain: its number.
        seed: of the orders.
    """

    def __init__(self, mixture: Mixture, domain: int, *, seed: int) -> None:
        self._mixture, self._domain, self._seed = mixture, domain, seed
        self._size = int(mixture.info.sizes[domain])
        self._order: tuple[int, Table | Feistel] | None = None  # of an epoch

    def take(self, start: int, count: int) -> Rows:
        """Return ``count`` rows, after the ``start`` that were drawn since the run began."""
        places, fresh = [], []
        for epoch, positions in self._epochs(start, count):
            places.append(self._permuted(epoch, positions))
            fresh.append(np.full(positions.size, epoch == 0))
        rows = self._mixture.rows_of(self._domain, np.concatenate(places))
        return Rows(rows, np.concatenate(fresh))

    def _epochs(self, start: int, count: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each epoch that the rows are of, and their positions in it."""
        while count:
            epoch, first = divmod(start, self._size)
            stop = min(first + count, self._size)
            yield epoch, np.arange(first, stop)
            start, count = start + stop - first, count - (stop - first)

    def _permuted(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            seed = np.random.SeedSequence(self._seed, spawn_key=(1, self._domain, epoch))
            self._order = epoch, permutation(self._size, seed=seed)
        return self._order[1](positions)
