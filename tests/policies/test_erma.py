"""ERMA's update and its exact minimiser."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix.policies import (
    ERMA,
)
from adaptmix.solvers import gap_weights
from tests.policies.cases import INFO, PI, STATS, run


@pytest.mark.parametrize("use_sizes", [False, True])
@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_ermas_iterated_update_converges_to_the_exact_minimiser(
    use_sizes: bool, penalty: float
) -> None:
    step = ERMA(variance_penalty=penalty, use_sizes=use_sizes, rate=1.0)
    exact = ERMA(variance_penalty=penalty, use_sizes=use_sizes, exact=True)
    sizes = INFO.sizes / INFO.sizes.sum() if use_sizes else PI
    minimiser = gap_weights(
        STATS.loss_mean, STATS.loss_var, importance=PI, sizes=sizes, variance_penalty=penalty
    )
    np.testing.assert_array_equal(run(exact, INFO, STATS).loss, minimiser)
    near = run(step, INFO, STATS, updates=10_000).loss
    np.testing.assert_allclose(near, minimiser, atol=1e-3)


def test_a_rate_outside_its_range_is_named() -> None:
    with pytest.raises(ValueError, match="rate must be finite and in"):
        ERMA(rate=2.0)
