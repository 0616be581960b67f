"""Arguments that several solvers take are checked once, and errors name them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from adaptmix.solvers._arguments import number_of_draws, pair_of_bounds, share_bounds


def test_bounds_are_vectors_of_one_value_per_domain() -> None:
    lower, upper = share_bounds(0.1, [0.5, 0.6, 1.0], 3)
    np.testing.assert_array_equal(lower, [0.1, 0.1, 0.1])
    np.testing.assert_array_equal(upper, [0.5, 0.6, 1.0])


def test_bounds_of_one_kth_leave_room_in_spite_of_rounding() -> None:
    for size in range(1, 200):
        share_bounds(1.0 / size, 1.0 / size, size)


@pytest.mark.parametrize("pair", [0.5, (0.1,), (0.1, 0.5, 1.0), None])
def test_what_is_no_pair_of_bounds_is_refused_by_its_name(pair: Any) -> None:
    with pytest.raises(TypeError, match=r"share_bounds must be a pair \(lower, upper\); got"):
        pair_of_bounds("share_bounds", pair, 3)


def test_bounds_that_nothing_meets_are_refused_by_the_name_of_their_pair() -> None:
    with pytest.raises(ValueError, match=r"^weight_bounds: lower must add up to at most 1 "):
        pair_of_bounds("weight_bounds", (0.4, 1.0), 3)


def test_draws_may_be_infinite_and_nothing_else_that_is_no_positive_number() -> None:
    assert number_of_draws(math.inf) == math.inf
    assert number_of_draws(3) == 3.0
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="draws must be finite and in"):
            number_of_draws(wrong)
