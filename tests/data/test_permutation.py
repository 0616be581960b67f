"""Permutations with and without a table: bijective for every size, and uniform enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from adaptmix.data._permutation import Feistel, Table, permutation

POWERS = [2**k + d for k in range(3, 13) for d in (-1, 0, 1)]


Kind = type[Table] | type[Feistel]
every_kind = pytest.mark.parametrize("kind", [Table, Feistel])


def key(seed: int) -> np.random.SeedSequence:
    """A key as the plan makes it: a spawned sequence per domain and epoch."""
    return np.random.SeedSequence(0, spawn_key=(1, 0, seed))


@every_kind
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 10, 1000, *POWERS])
def test_it_is_a_bijection(kind: Kind, size: int) -> None:
    for seed in range(3):
        values = kind(size, seed=key(seed))(np.arange(size))
        assert values.dtype == np.int64
        assert np.array_equal(np.sort(values), np.arange(size))


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1])
def test_a_table_serves_up_to_what_its_entries_hold(size: int) -> None:
    order = permutation(size, seed=key(0))
    assert isinstance(order, Table if size <= 2**16 else Feistel)
    assert np.array_equal(np.sort(order(np.arange(size))), np.arange(size))


@every_kind
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_value_does_not_depend_on_what_else_is_asked(
    kind: Kind, size: int, seed: int, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, size - 1))
    order = kind(size, seed=key(seed))
    together: NDArray[np.int64] = order(np.arange(size))
    assert order(np.array([position])).tolist() == [together[position]]


@given(
    size=st.integers(2**31, 2**62),
    positions=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50, unique=True),
)
def test_huge_sizes_cost_nothing(size: int, positions: list[int]) -> None:
    values = permutation(size, seed=key(0))(np.array(positions))
    assert len(set(values.tolist())) == len(positions)
    assert values.min() >= 0
    assert values.max() < size


@every_kind
def test_positions_stay_as_they_are(kind: Kind) -> None:
    positions = np.arange(5)
    kind(5, seed=key(0))(positions)
    assert positions.tolist() == [0, 1, 2, 3, 4]


@every_kind
def test_seeds_and_nothing_else_choose_the_order(kind: Kind) -> None:
    positions = np.arange(100)
    orders = [kind(100, seed=key(seed))(positions).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != positions.tolist()


def unlikely(values: NDArray[np.int64], kinds: int) -> bool:
    """Whether counts of ``kinds`` values are too uneven for chance.

    False alarm: 1e-5 per check (chi-square), 3e-4 over all below; seeds are fixed.
    """
    return bool(stats.chisquare(np.bincount(values, minlength=kinds)).pvalue < 1e-5)


# The smallest sizes use the smallest networks, which mix worst.
@every_kind
@pytest.mark.parametrize("size", [2, 3, 5, 8, 17])
def test_places_are_uniform_over_seeds(kind: Kind, size: int) -> None:
    places = np.array([0, 1, size - 1])
    orders = np.array([kind(size, seed=key(seed))(places) for seed in range(2500)])
    first, second, last = orders.T
    assert not unlikely(first, size)
    assert not unlikely(last, size)
    if size <= 8:
        # The second value among those that the first leaves over, so that every pair is as likely.
        assert (first != second).all()
        assert not unlikely(first * (size - 1) + (second - first) % size - 1, size * (size - 1))
