"""neyman_shares against bisection and SLSQP, its certificate, and the laws it obeys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from adaptmix._checks import FloatArray
from adaptmix.solvers import neyman_shares
from tests.solvers.certificates import allocation_residual

TOLERANCE = 1e-9
positive = st.floats(-15.0, 15.0).map(lambda exponent: 10.0**exponent)
scales = st.lists(positive | st.just(0.0), min_size=1, max_size=12).map(np.array)
unit = st.floats(0.0, 1.0)


@st.composite
def bounded(draw: st.DrawFn) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scales over 30 orders of magnitude, and bounds that some shares meet."""
    a = draw(scales)
    inner = np.array(draw(st.lists(unit, min_size=a.size, max_size=a.size))) + 1e-3
    inner /= inner.sum()
    lower = inner * np.array(draw(st.lists(unit, min_size=a.size, max_size=a.size)))
    room = np.array(draw(st.lists(unit, min_size=a.size, max_size=a.size)))
    return a, lower, np.minimum(inner + room * (1.0 - inner) + 1e-12, 1.0)


def shares_by_bisection(a: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    def excess(log_level: float) -> float:
        return float(np.clip(np.exp(log_level) * a, lower, upper).sum() - 1.0)

    level = float(np.exp(brentq(excess, -100.0, 100.0, xtol=1e-14)))
    return np.clip(level * a, lower, upper)


@given(bounded(), st.none() | positive)
def test_certificate(problem: tuple[FloatArray, FloatArray, FloatArray], price: float) -> None:
    a, lower, upper = problem
    cost = None if price is None else np.geomspace(1.0, price, a.size)
    p = neyman_shares(a, lower=lower, upper=upper, cost=cost)
    assert allocation_residual(a, p, lower=lower, upper=upper, cost=cost) <= TOLERANCE
    assert (p >= lower).all() and (p <= upper).all()
    assert abs(p.sum() - 1.0) < 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_equals_bisection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.lognormal(0.0, 3.0, 40)
    lower, upper = rng.uniform(0.0, 0.02, 40), rng.uniform(0.03, 0.2, 40)
    p = neyman_shares(a, lower=lower, upper=upper)
    np.testing.assert_allclose(p, shares_by_bisection(a, lower, upper), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_general_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, cost = rng.lognormal(size=6), rng.lognormal(size=6)
    found = minimize(
        lambda p: (a**2 / cost / p).sum(),
        np.full(6, 1 / 6),
        jac=lambda p: -(a**2) / cost / p**2,
        bounds=[(0.05, 0.3)] * 6,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1.0, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    p = neyman_shares(a, lower=0.05, upper=0.3, cost=cost)
    assert (a**2 / cost / p).sum() <= found.fun * (1 + 1e-9)
    np.testing.assert_allclose(p, found.x, atol=1e-5)


def test_without_bounds_shares_are_proportional() -> None:
    np.testing.assert_allclose(neyman_shares([1.0, 3.0]), [0.25, 0.75])
    np.testing.assert_allclose(neyman_shares([1.0, 3.0], cost=[1.0, 9.0]), [0.5, 0.5])


@given(bounded(), positive)
def test_scale_and_order_do_not_matter(
    problem: tuple[FloatArray, FloatArray, FloatArray], factor: float
) -> None:
    a, lower, upper = problem
    p = neyman_shares(a, lower=lower, upper=upper)
    np.testing.assert_allclose(neyman_shares(a * factor, lower=lower, upper=upper), p, atol=1e-12)
    back = slice(None, None, -1)
    turned = neyman_shares(a[back], lower=lower[back], upper=upper[back])
    np.testing.assert_allclose(turned[back], p, atol=1e-12)


@given(st.integers(1, 50), st.sampled_from([0.0, 1e-15, 1.0, 1e15]))
def test_equal_domains_share_evenly(size: int, value: float) -> None:
    shares = neyman_shares(np.full(size, value), lower=1.0 / size)
    np.testing.assert_allclose(shares, 1.0 / size, rtol=1e-12)
    np.testing.assert_allclose(neyman_shares(np.full(size, value)), 1.0 / size, rtol=1e-12)


def test_zero_scale_comes_last_and_evenly() -> None:
    np.testing.assert_array_equal(neyman_shares([0.0, 2.0, 0.0]), [0.0, 1.0, 0.0])
    np.testing.assert_allclose(neyman_shares([0.0, 2.0, 0.0], upper=0.5), [0.25, 0.5, 0.25])
    # Nearest to uniform: clip(level, lower, upper).
    np.testing.assert_allclose(neyman_shares(np.zeros(3), lower=[0.5, 0.0, 0.0]), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(neyman_shares([0.0, 0.0], upper=[0.2, 1.0]), [0.2, 0.8])


def test_raising_a_scale_never_lowers_its_share() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    shares = [
        neyman_shares(a * [factor, 1, 1, 1], lower=0.1, upper=0.5)[0]
        for factor in np.geomspace(1e-3, 1e3, 50)
    ]
    assert (np.diff(shares) >= -1e-15).all()


def test_a_million_domains() -> None:
    a = np.random.default_rng(0).lognormal(0.0, 5.0, 1_000_000)
    p = neyman_shares(a, lower=1e-7, upper=1e-5)
    assert allocation_residual(a, p, lower=1e-7, upper=1e-5) <= TOLERANCE


def test_residual_sees_what_is_wrong() -> None:
    assert allocation_residual([1.0, 1.0], [0.5, 0.5]) == 0.0
    assert allocation_residual([1.0, 1.0], [0.4, 0.6]) == pytest.approx(1 / 3)
    assert allocation_residual([1.0, 1.0], [0.5, 0.4]) >= 0.1
    assert allocation_residual([1.0, 1.0], [0.5, 0.5], upper=[0.3, 0.7]) == pytest.approx(0.2)
    assert allocation_residual([1.0, 0.0], [0.0, 1.0]) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower": 0.4}, r"lower must add up to at most 1 .* got 1.2 with K=3"),
        ({"upper": 0.2}, r"upper must add up to at least 1 .* got 0.6 with K=3"),
        ({"lower": 0.3, "upper": [0.5, 0.5, 0.2]}, r"lower must not exceed upper; .* 0.3 > 0.2"),
        ({"lower": -0.1}, r"lower must be finite and in \[0, 1\]; got -0.1"),
        ({"upper": [0.5, 2.0, 0.5]}, r"upper must be in \[0, 1\]; got 2 at 1"),
        ({"lower": [0.1, 0.1]}, r"lower must have one value per domain \(3\); got 2"),
        ({"cost": [1.0, 0.0, 1.0]}, r"cost must be > 0; got 0 at 1"),
        ({"scale": [1.0, -1.0, 1.0]}, r"scale must be >= 0; got -1 at 1"),
        ({"scale": []}, r"scale must have shape \(K,\)"),
        ({"scale": [1.0, np.inf, 1.0]}, r"scale must be finite; got inf at 1"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    scale = options.pop("scale", [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=message):
        neyman_shares(scale, **options)


@settings(max_examples=25)
@given(bounded())
def test_shares_do_not_depend_on_the_run(
    problem: tuple[FloatArray, FloatArray, FloatArray],
) -> None:
    a, lower, upper = problem
    before = [array.copy() for array in problem]
    first = neyman_shares(a, lower=lower, upper=upper)
    np.testing.assert_array_equal(first, neyman_shares(a, lower=lower, upper=upper))
    for array, copy in zip(problem, before, strict=True):
        np.testing.assert_array_equal(array, copy)
