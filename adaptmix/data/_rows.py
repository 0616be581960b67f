"""Which row: what turns "the n-th of a domain" into a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adaptmix.data._permutation import Permutations


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a mixture.

    Attributes:
        rows: (n,) int64 rows of the mixture.
        fresh: (n,) bool, whether the run draws the row for the first time.
    """

    rows: NDArray[np.int64]
    fresh: NDArray[np.bool_]


class RowSource(Protocol):
    """Gives the rows of every domain, one after the other."""

    def take(self, domains: NDArray[np.int64], numbers: NDArray[np.int64]) -> Rows:
        """Return rows by domain, and by how many of the domain were drawn before; both (n,)."""


class PermutedRows:
    """The rows of a map-style dataset's domains, without replacement.

    They come in a new random order each time a domain is used up. Which row is drawn depends on
    how many of its domain were drawn before, and on nothing else.

    Args:
        sizes: (K,) rows of each domain.
        rows_of: returns the rows at (n,) positions within their domains, as ``Mixture.rows_of``.
        seed: of the orders.
        names: of the domains, as for ``Permutations``.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        rows_of: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]],
        *,
        seed: int,
        names: Sequence[str] | None = None,
    ) -> None:
        self._sizes, self._rows_of = sizes, rows_of
        self._orders = Permutations(self._sizes, seed=seed, names=names)

    def take(self, domains: NDArray[np.int64], numbers: NDArray[np.int64]) -> Rows:
        """Return rows by domain, and by how many of the domain were drawn before; both (n,)."""
        epochs, positions = np.divmod(numbers, self._sizes[domains])
        places = self._orders(domains, epochs, positions)
        return Rows(self._rows_of(domains, places), epochs == 0)


class WithStreams:
    """The rows of datasets beside those of streams, which are given by their number.

    Args:
        stored: gives the rows of the other domains.
        streams: the numbers of the domains that are streams.
    """

    def __init__(self, stored: RowSource, streams: Sequence[int]) -> None:
        self.stored, self._streams = stored, streams

    def take(self, domains: NDArray[np.int64], numbers: NDArray[np.int64]) -> Rows:
        """Return rows by domain, and by how many of the domain were drawn before; both (n,).

        Whether a stream's row comes for the first time shows when it is read.
        """
        rows, fresh = numbers.copy(), np.ones(numbers.size, dtype=np.bool_)
        stored = ~np.isin(domains, self._streams)
        if stored.any():
            taken = self.stored.take(domains[stored], numbers[stored])
            rows[stored], fresh[stored] = taken.rows, taken.fresh
        return Rows(rows, fresh)
