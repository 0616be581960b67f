"""The water-filling that the solvers share: thresholds, jumps and kinks closer than rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix.solvers._waterfill import water_fill
from tests.solvers.certificates import trade_residual

wide = st.floats(-30.0, 30.0).map(lambda exponent: 10.0**exponent)


@given(st.integers(1, 12), st.data())
def test_shares_add_up_and_keep_their_bounds(size: int, data: st.DataObject) -> None:
    def draw(values: st.SearchStrategy[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array(data.draw(st.lists(values, min_size=size, max_size=size)))

    slope, threshold = draw(wide | st.just(0.0)), draw(wide | st.just(1.0))
    lower = draw(st.floats(0.0, 1.0))
    upper = lower + draw(st.floats(0.0, 1.0))
    total = lower.sum() + data.draw(st.floats(0.0, 1.0)) * (upper - lower).sum()
    share = water_fill(slope, lower, upper, threshold=threshold, total=total)
    assert share.sum() == pytest.approx(total, rel=1e-12)
    assert (share >= lower).all() and (share <= upper * (1 + 1e-15)).all()
    # Steeper or earlier never gets less, within equal bounds.
    steep = water_fill(slope, lower * 0, upper * 0 + 1, threshold=threshold, total=size / 2)
    order = np.lexsort((slope, -threshold))
    same = threshold[order][1:] == threshold[order][:-1]
    assert (np.diff(steep[order])[same] >= -1e-15).all()


@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from(["none", "few", "many"]))
def test_the_kinks_find_what_newtons_method_finds(size: int, seed: int, bounds: str) -> None:
    rng = np.random.default_rng(seed)
    slope, threshold = rng.lognormal(0.0, 1.0, (2, size))
    room = {"none": (0.0, 1.0), "few": (0.3 / size, 1.0), "many": (0.8 / size, 1.3 / size)}[bounds]
    lower, upper = (np.full(size, bound) for bound in room)
    found = water_fill(slope, lower, upper, threshold=threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaptmix.solvers._waterfill._by_newton", lambda *_: None)
        expected = water_fill(slope, lower, upper, threshold=threshold)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_equal_jumps_share_by_room() -> None:
    share = water_fill(
        np.array([1e200, 1e200, 1.0]),
        np.zeros(3),
        np.array([0.2, 0.6, 1.0]),
        threshold=np.array([1.0, 1.0, 3.0]),
        total=0.4,
    )
    np.testing.assert_allclose(share, [0.1, 0.3, 0.0])


def test_kinks_within_rounding_of_each_other() -> None:
    # Each share crosses its whole range within a few units in the last place of the level.
    slope = np.geomspace(1e12, 1e18, 1000)
    share = water_fill(slope, np.zeros(1000), np.full(1000, 0.01), threshold=np.ones(1000))
    assert share.sum() == pytest.approx(1.0, rel=1e-12)


def test_totals_at_the_ends() -> None:
    slope, lower, upper = np.array([1.0, 2.0]), np.array([0.1, 0.2]), np.array([0.5, 0.6])
    np.testing.assert_array_equal(water_fill(slope, lower, upper, total=lower.sum()), lower)
    np.testing.assert_array_equal(water_fill(slope, lower, upper, total=upper.sum()), upper)
    np.testing.assert_array_equal(water_fill(slope * 0, lower, upper, total=lower.sum()), lower)


def test_trade_residual_is_the_best_trade() -> None:
    half = np.array([0.5, 0.5])
    zero, one = np.zeros(2), np.ones(2)
    assert trade_residual(np.array([1.0, 2.0]), half, zero, one) == 0.5
    assert trade_residual(np.array([1.0, 2.0]), half, zero, half) == 0.0
    assert trade_residual(zero, half, zero, one) == 0.0
