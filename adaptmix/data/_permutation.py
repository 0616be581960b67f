"""Random permutations of every domain's rows, evaluated together at whatever places are asked."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# Up to so many rows, an order is written out: a network over so few is not uniform enough.
_WRITTEN_OUT = 32
# Even. From 33 rows on, the pairs of 10 rounds differ from those of shuffles by less than two
# million permutations can show; those of 6 rounds do not.
_ROUNDS = 10
# Odd constants of MurmurHash3's finaliser (Appleby).
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_HALF = np.uint64(32)
_ONE = np.uint64(1)
_COIN = np.uint64(40)

_Words = NDArray[np.uint64]


class Permutations:
    """For each domain and epoch a bijection of {0, …, n − 1}, chosen by a seed.

    It is evaluated where it is asked for, for any number of domains and epochs at once, and keeps
    five numbers per domain and nothing per row. Up to 32 rows, all orders are equally likely:
    hashes of 0 … n − 1 are compared, and a value is the rank of its hash. Longer ones go through
    a Feistel network over R · C ≥ n values, R a power of two and C as small as can be, so that a
    value that leads out of [0, n) and is sent through again is rare. At last 0 and 1 change places
    with probability ½, which makes odd permutations as likely as even ones.

    Args:
        sizes: (K,) rows of each domain, from 1 to 2⁶².
        seed: of all of them.
        names: of the domains, on which their orders depend; on their numbers when None.

    Source:
        Luby and Rackoff (1988) for the network; Black and Rogaway (2002) for the cycle walk.

    Example:
        >>> import numpy as np
        >>> orders = Permutations(np.array([3, 5]), seed=7)
        >>> domains, epochs = np.repeat([0, 1], [3, 5]), np.zeros(8, dtype=np.int64)
        >>> values = orders(domains, epochs, np.array([0, 1, 2, 0, 1, 2, 3, 4]))
        >>> sorted(values[:3].tolist()), sorted(values[3:].tolist())
        ([0, 1, 2], [0, 1, 2, 3, 4])
    """

    def __init__(
        self, sizes: NDArray[np.int64], *, seed: int, names: Sequence[str] | None = None
    ) -> None:
        words = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(4, np.uint64)
        self._sizes = sizes.astype(np.uint64)
        self._epoch_stride, self._second_key = words[2] | _ONE, words[3]
        numbers = np.arange(sizes.size, dtype=np.uint64) if names is None else _numbers(names)
        self._keys = _mixed(words[0] + numbers * (words[1] | _ONE))
        # Half of the bits that n takes.
        self._shift = (np.frexp(sizes.astype(np.float64))[1] // 2).astype(np.uint64)
        self._columns: _Words = ((self._sizes - _ONE) >> self._shift) + _ONE

    def __call__(
        self, domains: NDArray[np.int64], epochs: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return (n,) values, each at its position in the order of its domain and epoch.

        Args:
            domains: (n,) numbers of domains.
            epochs: (n,) numbers of epochs.
            positions: (n,) each in [0, its domain's size).
        """
        sizes = self._sizes[domains]
        first = _mixed(self._keys[domains] + epochs.astype(np.uint64) * self._epoch_stride)
        second = _mixed(first ^ self._second_key) | _ONE
        places = positions.astype(np.uint64)
        short = sizes <= _WRITTEN_OUT
        if not short.any():
            return self._walked(domains, places, sizes, first, second).astype(np.int64)
        values = np.empty_like(places)
        values[short] = _ranks(places[short], sizes[short], first[short], second[short])
        if not short.all():
            some = ~short
            values[some] = self._walked(
                domains[some], places[some], sizes[some], first[some], second[some]
            )
        return values.astype(np.int64)

    def _walked(
        self, domains: NDArray[np.int64], places: _Words, sizes: _Words, *keys: _Words
    ) -> _Words:
        """Send places through the network until all values are below their sizes."""
        shift, columns = self._shift[domains], self._columns[domains]
        values = _network(places, shift, columns, *keys)
        outside = np.flatnonzero(values >= sizes)
        while outside.size:
            again = tuple(part[outside] for part in (shift, columns, *keys))
            values[outside] = _network(values[outside], *again)
            outside = outside[values[outside] >= sizes[outside]]
        values ^= (values < 2) & (keys[0] >> _COIN)
        return values


def _numbers(names: Sequence[str]) -> _Words:
    """Return a number of each name, which other names do not change."""
    hashes = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(hashes, dtype="<u8").astype(np.uint64)


def _network(values: _Words, shift: _Words, columns: _Words, key: _Words, stride: _Words) -> _Words:
    """Return the values' images in a Feistel network whose halves are added to in turn."""
    mask = (_ONE << shift) - _ONE
    left, right, key = values >> shift, values & mask, key.copy()
    drawn, below = np.empty_like(values), np.empty_like(values)
    for _ in range(_ROUNDS // 2):
        # A random number below 2³² becomes one below C; then what is too large wraps around.
        _random_half(right, key, drawn, below)
        drawn *= columns
        drawn >>= _HALF
        left += drawn
        np.minimum(left, np.subtract(left, columns, out=below), out=left)
        key += stride
        _random_half(left, key, drawn, below)
        right += drawn
        right &= mask
        key += stride
    left <<= shift
    left |= right
    return left


def _random_half(words: _Words, key: _Words, out: _Words, spare: _Words) -> None:
    """Write into ``out`` the upper half of ``_mixed(words ^ key)``, which its last line leaves."""
    np.bitwise_xor(words, key, out=out)
    out *= _MIX_1
    out ^= np.right_shift(out, _HALF, out=spare)
    out *= _MIX_2
    out >>= _HALF


def _ranks(places: _Words, sizes: _Words, key: _Words, stride: _Words) -> _Words:
    """Return how many of a short order's hashes are below that of each place."""
    numbers = np.arange(int(sizes.max()), dtype=np.uint64)
    hashes = _mixed(key[:, None] + numbers * stride[:, None])
    own = np.take_along_axis(hashes, places[:, None].astype(np.int64), axis=1)
    ranks: _Words = ((hashes < own) & (numbers < sizes[:, None])).sum(1, dtype=np.uint64)
    return ranks


def _mixed(words: _Words) -> _Words:
    """Mix all bits of 64-bit words, one to one; the upper half depends on every bit."""
    words = words * _MIX_1
    words ^= words >> _HALF
    words *= _MIX_2
    words ^= words >> _HALF
    return words
