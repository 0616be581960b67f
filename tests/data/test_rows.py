"""Row sources: the rows of a domain, one after the other, each once before any comes again."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix.data._rows import PermutedRows
from tests import helpers_data as helpers

SIZES = (20, 9, 14)


@pytest.mark.parametrize("domain", range(3))
def test_each_row_comes_once_before_any_comes_again(domain: int) -> None:
    mixture, size = helpers.mixture(*SIZES), SIZES[domain]
    taken = PermutedRows(mixture, domain, seed=4).take(0, 3 * size)
    epochs = taken.rows.reshape(3, size)
    assert (mixture.domain_of(taken.rows) == domain).all()
    for epoch in epochs:
        assert len(set(epoch.tolist())) == size
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3  # in a new order each time
    assert taken.fresh.tolist() == [True] * size + [False] * 2 * size


def test_a_row_depends_on_how_many_were_drawn_and_on_nothing_else() -> None:
    mixture = helpers.mixture(*SIZES)
    whole = PermutedRows(mixture, 1, seed=4).take(0, 40)
    source, start = PermutedRows(mixture, 1, seed=4), 0
    for count in (1, 7, 2, 13, 17):
        part = source.take(start, count)
        assert np.array_equal(part.rows, whole.rows[start : start + count])
        assert np.array_equal(part.fresh, whole.fresh[start : start + count])
        start += count
    assert start == 40
    other = PermutedRows(mixture, 1, seed=5).take(0, 40)
    assert not np.array_equal(other.rows, whole.rows)
