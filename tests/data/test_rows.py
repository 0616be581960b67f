"""Row sources: the rows of a domain, one after the other, each once before any comes again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptmix import Controller, Mixture
from adaptmix.data._rows import Rows, RowSource
from adaptmix.errors import StateError
from tests import helpers_data as helpers

SIZES = (20, 9, 14)


def take(source: RowSource, domain: int, start: int, count: int) -> Rows:
    return source.take(np.full(count, domain), np.arange(start, start + count))


@pytest.mark.parametrize("domain", range(3))
def test_each_row_comes_once_before_any_comes_again(domain: int) -> None:
    mixture, size = helpers.mixture(*SIZES), SIZES[domain]
    taken = take(mixture.row_source(seed=4), domain, 0, 3 * size)
    epochs = taken.rows.reshape(3, size)
    assert (mixture.domain_of(taken.rows) == domain).all()
    for epoch in epochs:
        assert len(set(epoch.tolist())) == size
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3  # in a new order each time
    assert taken.fresh.tolist() == [True] * size + [False] * 2 * size


def test_a_row_depends_on_how_many_were_drawn_and_on_nothing_else() -> None:
    mixture = helpers.mixture(*SIZES)
    whole = take(mixture.row_source(seed=4), 1, 0, 40)
    source = mixture.row_source(seed=4)
    numbers = np.random.default_rng(0).permutation(40)
    mixed = source.take(np.tile([1, 2], 40), np.repeat(numbers, 2))  # beside another domain's
    assert np.array_equal(mixed.rows[::2], whole.rows[numbers])
    assert np.array_equal(mixed.fresh[::2], whole.fresh[numbers])
    other = take(mixture.row_source(seed=5), 1, 0, 40)
    assert not np.array_equal(other.rows, whole.rows)


class InOrder:
    """A stranger's source: the rows of a domain as they are in its dataset."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture

    def take(self, domains: NDArray[np.int64], numbers: NDArray[np.int64]) -> Rows:
        epochs, places = np.divmod(numbers, self._mixture.sizes[domains])
        return Rows(self._mixture.rows_of(domains, places), epochs == 0)


class Ordered(Mixture):
    """A mixture whose rows come in order."""

    def row_source(self, *, seed: int) -> InOrder:
        return InOrder(self)


def test_a_mixture_brings_its_own_source() -> None:
    mixture = Ordered({"a": range(6), "b": range(10, 13)})
    rows = []
    for batch, draw in Controller(mixture, policy="static").loader(3, steps=6).with_draws():
        assert batch.tolist() == [mixture[row] for row in draw.rows.tolist()]
        rows += draw.rows[draw.rows.argsort()].tolist()  # a step's rows come in random order
    assert [row for row in rows if row < 6] == [*range(6), *range(6)]
    assert [row for row in rows if row >= 6] == [6, 7, 8, 6, 7, 8]


def test_a_run_goes_on_with_the_source_of_rows_that_it_had() -> None:
    """With another one it would draw rows again, and leave others out, without a word."""
    parts = {"a": range(6), "b": range(10, 13)}
    saved = Controller(Ordered(parts), policy="static").state_dict()
    Controller(Ordered(parts), policy="static").load_state_dict(saved)
    with pytest.raises(StateError, match=r"row_source\.class must be .*InOrder.*PermutedRows"):
        Controller(Mixture(parts), policy="static").load_state_dict(saved)
