"""Random permutations of 0 … n − 1: a table where they are short, a cipher where they are long."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import integer

# A table of this many entries is made in a millisecond and takes two bytes a row.
_TABLE = 2**16
_ROUNDS = 8
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


def permutation(size: int, *, seed: np.random.SeedSequence) -> Table | Feistel:
    """Return the bijection of {0, …, size − 1} that a seed chooses, to call with positions.

    Args:
        size: n, at least 1.
        seed: what it is drawn from.

    Example:
        >>> import numpy as np
        >>> sorted(permutation(5, seed=np.random.SeedSequence(7))(np.arange(5)).tolist())
        [0, 1, 2, 3, 4]
    """
    return (Table if size <= _TABLE else Feistel)(size, seed=seed)


class Table:
    """A bijection of {0, …, n − 1}, drawn uniformly from all of them and written out.

    Args:
        size: n, from 1 to 2¹⁶.
        seed: what it is drawn from.
    """

    def __init__(self, size: int, *, seed: np.random.SeedSequence) -> None:
        size = integer("size", size, minimum=1)
        self._values = np.random.default_rng(seed).permutation(size).astype(np.uint16)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the values at ``positions``, an array of integers in [0, n)."""
        return self._values[positions].astype(np.int64)


class Feistel:
    """A bijection of {0, …, n − 1} chosen by a seed, evaluated where it is asked for.

    A balanced Feistel network over the smallest even number of bits that holds n, walked along its
    cycle until the value is below n. It keeps no table, so a domain of a billion rows costs as
    little as one of ten.

    Args:
        size: n, at least 1.
        seed: where the keys of its rounds come from.

    Source:
        Luby and Rackoff (1988) for the network; Black and Rogaway (2002) for the cycle walk.
    """

    def __init__(self, size: int, *, seed: np.random.SeedSequence) -> None:
        self.size = integer("size", size, minimum=1)
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        self._half = np.uint64(half)
        self._mask = np.uint64((1 << half) - 1)
        self._keys = seed.generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the values at ``positions``, an array of integers in [0, n)."""
        values = self._network(positions.astype(np.uint64))
        # At most three quarters of the network's range lie outside [0, n), so this ends quickly.
        while (outside := values >= self.size).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_scramble(right ^ key) & self._mask)
        return (left << self._half) | right


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix all bits of 64-bit words (MurmurHash3's finaliser, Appleby)."""
    values = (values ^ (values >> _SHIFT)) * _MIX_1
    values = (values ^ (values >> _SHIFT)) * _MIX_2
    return values ^ (values >> _SHIFT)
