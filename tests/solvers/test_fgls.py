"""fgls_weights against its formula and generalized least squares, and at its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix.solvers import fgls_weights
from tests.solvers.certificates import fgls_residual

wide = st.floats(-15.0, 15.0).map(lambda exponent: 10.0**exponent)
domains = st.lists(st.tuples(wide, wide, wide), min_size=1, max_size=12).map(
    lambda rows: np.array(rows).T
)


@given(domains)
def test_formula_and_certificate(columns: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    noise, importance, sizes = columns
    pi = importance / importance.sum()
    w = fgls_weights(noise, importance=importance, sizes=sizes)
    samples = sizes / noise
    np.testing.assert_allclose(pi * w, samples / samples.sum(), rtol=1e-12)
    assert fgls_residual(noise, w, importance=importance, sizes=sizes) <= 1e-9
    plain = fgls_weights(noise, importance=importance)
    np.testing.assert_allclose(plain * noise, plain[0] * noise[0], rtol=1e-12)
    assert fgls_residual(noise, plain, importance=importance) <= 1e-9


@given(st.lists(wide, min_size=1, max_size=30), wide)
def test_equal_noise_leaves_every_weight_at_exactly_one(
    importance: list[float], noise: float
) -> None:
    weights = fgls_weights(np.full(len(importance), noise), importance=importance)
    np.testing.assert_array_equal(weights, 1.0)


def test_weighted_fit_is_generalized_least_squares() -> None:
    rng = np.random.default_rng(0)
    n, noise, pi = np.array([40, 10]), np.array([4.0, 0.25]), np.array([0.3, 0.7])
    domain = np.repeat([0, 1], n)
    x = rng.normal(size=(50, 3))
    y = x @ [1.0, 2.0, 3.0] + rng.normal(size=50) * np.sqrt(noise)[domain]
    w = fgls_weights(noise, importance=pi, sizes=n)
    root = np.sqrt((pi * w / n)[domain])  # the objective is Σ π w (mean loss of the domain)
    ours = np.linalg.lstsq(root[:, None] * x, root * y)[0]
    inverse = np.diag(1.0 / noise[domain])
    aitken = np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y)
    np.testing.assert_allclose(ours, aitken, rtol=1e-12)


def test_limits() -> None:
    half = {"importance": [0.25, 0.25, 0.5]}
    np.testing.assert_allclose(fgls_weights([0.0, 1.0, 0.0], **half), [4 / 3, 0.0, 4 / 3])
    exact = fgls_weights([0.0, 1.0, 0.0], **half, sizes=[30, 1, 10])
    np.testing.assert_allclose(exact, [3.0, 0.0, 0.5])
    endless = fgls_weights([1.0, 1.0, 4.0], **half, sizes=[np.inf, 10, np.inf])
    np.testing.assert_allclose(endless, [3.2, 0.0, 0.4])
    np.testing.assert_array_equal(fgls_weights([0.0, 0.0, 0.0], **half), 1.0)
    np.testing.assert_array_equal(fgls_weights([7.0], importance=[3.0], sizes=[5]), 1.0)
    for w, sizes in ((exact, [30, 1, 10]), (endless, None)):
        residual = fgls_residual([0.0, 1.0, 0.0], w, **half, sizes=sizes)
        assert residual == pytest.approx(0.0, abs=1e-15)


def test_residual_sees_what_is_wrong() -> None:
    assert fgls_residual([1.0, 2.0], [1.0, 1.0], importance=[0.5, 0.5]) == pytest.approx(0.5)
    assert fgls_residual([1.0, 1.0], [2.0, 2.0], importance=[0.5, 0.5]) == pytest.approx(1.0)
    assert fgls_residual([0.0, 1.0], [1.0, 1.0], importance=[0.5, 0.5]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": [1.0, -1.0]}, r"noise must be >= 0; got -1 at 1"),
        ({"noise": [1.0]}, r"noise must have one value per domain \(2\); got 1"),
        ({"importance": [1.0, 0.0]}, r"importance must be > 0; got 0 at 1"),
        ({"sizes": [1.0, 0.0]}, r"sizes must be > 0; got 0 at 1"),
        ({"noise": [1.0, np.nan]}, r"noise must be finite; got nan at 1"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"noise": [1.0, 1.0], "importance": [1.0, 1.0], **options}
    with pytest.raises(ValueError, match=message):
        fgls_weights(**arguments)
