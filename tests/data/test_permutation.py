"""Permutations: bijective for every size, uniform, and those of real shuffles by any statistic."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from adaptmix.data._permutation import Permutations
from tests.helpers_data import SIGMAS

POWERS = [2**k + d for k in range(3, 13) for d in (-1, 0, 1)]
Values = NDArray[np.int64]


def order(size: int, *, seed: int = 0, epoch: int = 0) -> Values:
    """One whole order of a domain of some size, beside other domains."""
    whole = np.arange(size)
    return Permutations(np.array([9, size, 40]), seed=seed)(
        np.ones_like(whole), np.full_like(whole, epoch), whole
    )


def epochs(size: int, places: list[int], number: int, *, seed: int = 0) -> Values:
    """(number, places) values at some places in the orders of as many epochs."""
    asked = np.repeat(np.arange(number), len(places))
    values = Permutations(np.array([size]), seed=seed)(
        np.zeros_like(asked), asked, np.tile(places, number)
    )
    return values.reshape(number, len(places))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 10, 31, 32, 33, 34, 1000, *POWERS, 2**16 + 1])
def test_it_is_a_bijection(size: int) -> None:
    for epoch in range(3):
        values = order(size, epoch=epoch)
        assert values.dtype == np.int64
        assert np.array_equal(np.sort(values), np.arange(size))


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_a_value_does_not_depend_on_what_else_is_asked(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    orders = Permutations(np.array(sizes), seed=seed)
    number = data.draw(st.integers(1, 20))
    asked = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=number, max_size=number))
    domains = np.array(asked)
    epoch = np.array(data.draw(st.lists(st.integers(0, 3), min_size=number, max_size=number)))
    places = np.array([data.draw(st.integers(0, sizes[domain] - 1)) for domain in asked])
    given_places = places.copy()
    together = orders(domains, epoch, places)
    assert np.array_equal(places, given_places)
    alone = [orders(*(part[i : i + 1] for part in (domains, epoch, places))) for i in range(number)]
    assert together.tolist() == np.concatenate(alone).tolist()


@given(
    size=st.integers(2**31, 2**62),
    positions=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50, unique=True),
)
def test_huge_sizes_cost_nothing(size: int, positions: list[int]) -> None:
    nowhere = np.zeros(len(positions), dtype=np.int64)
    values = Permutations(np.array([size]), seed=0)(nowhere, nowhere, np.array(positions))
    assert len(set(values.tolist())) == len(positions)
    assert values.min() >= 0
    assert values.max() < size


@pytest.mark.parametrize("size", [20, 100])
def test_seed_domain_and_epoch_choose_the_order(size: int) -> None:
    whole = np.arange(size)
    found = []
    for seed, domain, epoch in itertools.product((0, 1), (0, 1), (0, 1)):
        orders = Permutations(np.array([size, size]), seed=seed)
        values = orders(np.full(size, domain), np.full(size, epoch), whole)
        assert np.array_equal(values, orders(np.full(size, domain), np.full(size, epoch), whole))
        found.append(tuple(values.tolist()))
    assert len({tuple(range(size)), *found}) == 9


# The statistical tests below: p < 1e-5 fails (two-sided or chi-square), 43 checks, so that a wrong
# alarm is to be expected in one of 2 000 choices of the seeds, which are fixed. Each is a statistic
# whose distribution over real shuffles is known exactly.


def unlikely(counts: NDArray[np.int64]) -> bool:
    """Whether counts of equally likely cases are too uneven for chance."""
    return bool(stats.chisquare(counts).pvalue < 1e-5)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_of_a_short_domain_are_equally_likely(size: int) -> None:
    values = epochs(size, list(range(size)), 60_000)
    codes, counts = np.unique(values @ size ** np.arange(size), return_counts=True)
    assert codes.size == math.factorial(size)
    assert not unlikely(counts)


@pytest.mark.parametrize("size", [7, 17, 32, 33, 37, 48, 64, 65, 100])
def test_pairs_of_values_are_equally_likely(size: int) -> None:
    # The second place has the same lower half as the first, which a network mixes worst.
    for second in (1, min(size - 1, 2 ** (size.bit_length() // 2))):
        pair = epochs(size, [0, second], 300_000, seed=second)
        shifts = (pair[:, 1] - pair[:, 0]) % size - 1
        assert not unlikely(np.bincount(pair[:, 0] * (size - 1) + shifts))


@pytest.mark.parametrize("size", [50, 64, 200])
def test_odd_orders_are_as_likely_as_even_ones(size: int) -> None:
    values = epochs(size, list(range(size)), 600)
    pairs = [(values[:, j, None] > values[:, j + 1 :]).sum(1) for j in range(size - 1)]
    odd = int((sum(pairs) % 2).sum())
    assert stats.binomtest(odd, 600).pvalue > 1e-5


@pytest.mark.parametrize("size", [1000, 4096, 10**6])
def test_displacements_are_those_of_a_shuffle(size: int) -> None:
    """How far rows move is spread as in real shuffles: by chi-square over 50 ranges."""
    places = np.arange(0, size, max(1, size // 1000))
    moved = (epochs(size, places.tolist(), 100) - places) % size
    assert not unlikely(np.bincount((moved * 50 // size).ravel(), minlength=50))


@pytest.mark.parametrize("size", [1000, 4096, 10**6])
@pytest.mark.parametrize("distance", [1, 2, 32, 64])
def test_values_of_places_near_each_other_are_uncorrelated(size: int, distance: int) -> None:
    """The mean product of two values is that of two rows drawn without replacement."""
    places = np.arange(0, 999 - distance)
    values = epochs(size, [*places, *(places + distance)], 20, seed=distance)
    centred = (values - (size - 1) / 2) / math.sqrt((size**2 - 1) / 12)
    products = centred[:, : places.size] * centred[:, places.size :]
    # Exactly −1 / (n − 1) in a shuffle; products of neighbours are nearly independent.
    assert abs(products.mean() + 1 / (size - 1)) < SIGMAS / math.sqrt(products.size)


def test_orders_of_neighbouring_epochs_and_domains_are_uncorrelated() -> None:
    size, number = 500, 40
    orders = Permutations(np.full(number, size), seed=0)
    domains, epoch, places = (part.ravel() for part in np.indices((number, number, size)))
    values = orders(domains, epoch, places).reshape(number, number, size)
    centred = (values - (size - 1) / 2) / math.sqrt((size**2 - 1) / 12)
    for other in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(other.mean()) < SIGMAS / math.sqrt(other.size)
