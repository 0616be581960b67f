"""neyman_shares where domains are drawn less than once per step: a water-filling with a kink."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from adaptmix._checks import FloatArray
from adaptmix.solvers import neyman_shares
from tests.solvers.certificates import allocation_residual

TOLERANCE = 1e-9
wide = st.floats(-15.0, 15.0).map(lambda exponent: 10.0**exponent) | st.just(0.0)
unit = st.floats(0.0, 1.0)


class Problem(NamedTuple):
    scale: FloatArray
    uncentred: FloatArray
    rows: int
    lower: FloatArray
    upper: FloatArray

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "scale"}

    def shares(self, **changes: Any) -> FloatArray:
        return neyman_shares(self.scale, **{**self.options(), **changes})


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Both moments over 30 orders of magnitude, 1 to 64 rows, and bounds that some shares meet."""
    K = draw(st.integers(1, 12))

    def column(values: st.SearchStrategy[float]) -> FloatArray:
        return np.array(draw(st.lists(values, min_size=K, max_size=K)))

    v, mean = column(wide), column(wide)
    inner = column(unit) + 1e-3
    inner /= inner.sum()
    room = draw(st.sampled_from([0.0, 0.1, 1.0]))
    return Problem(
        v,
        np.maximum(np.hypot(v, mean), v),
        draw(st.integers(1, 64)),
        inner * draw(st.sampled_from([0.0, 0.3, 0.9])),
        np.minimum(inner + room * (1.0 - inner) + 1e-12, 1.0),
    )


@given(problems(), st.none() | st.floats(0.01, 100.0))
def test_certificate(problem: Problem, price: float | None) -> None:
    cost = None if price is None else np.geomspace(1.0, price, problem.scale.size)
    p = problem.shares(cost=cost)
    assert allocation_residual(problem.scale, p, cost=cost, **problem.options()) <= TOLERANCE
    assert (p >= problem.lower).all() and (p <= problem.upper).all()
    assert p.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_formula(seed: int) -> None:
    """B = clip(max(τ a v, min(τ a s, 1)), lo, hi), with τ by bisection."""
    rng = np.random.default_rng(seed)
    K, rows = 40, int(rng.integers(4, 80))
    v = rng.lognormal(size=K)
    s = np.hypot(v, rng.lognormal(size=K) * 2.0)
    lower, upper = rng.uniform(0.0, 0.5 / K, K), rng.uniform(2.0 / K, 6.0 / K, K)

    def counts(level: float) -> FloatArray:
        free = np.maximum(level * v, np.minimum(level * s, 1.0))
        return np.clip(free, rows * lower, rows * upper)

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2.0
        low, high = (middle, high) if counts(middle).sum() < rows else (low, middle)
    p = neyman_shares(v, uncentred=s, rows=rows, lower=lower, upper=upper)
    np.testing.assert_allclose(p, counts(high) / rows, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_no_other_shares_have_less_variance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    K, rows = 6, 5
    v = rng.lognormal(size=K)
    s = np.hypot(v, 2.0)

    def variance(p: FloatArray) -> float:
        b = rows * p
        return float(np.where(b < 1.0, s**2 / b - (s**2 - v**2), v**2 / b).sum())

    best = variance(neyman_shares(v, uncentred=s, rows=rows))
    for start in rng.dirichlet(np.ones(K), 5):
        found = minimize(
            lambda x: variance(np.exp(x) / np.exp(x).sum()), np.log(start + 0.01), method="Powell"
        )
        assert best <= found.fun * (1.0 + 1e-9)


def test_one_row_of_every_batch_is_a_result_where_it_pays() -> None:
    # A mean gradient that is ten times the noise comes and goes: be sure of it.
    p = neyman_shares([8.0, 1.0, 1.0], uncentred=[8.0, 10.0, 10.0], rows=8)
    np.testing.assert_allclose(8 * p, [6.0, 1.0, 1.0])
    # With no mean gradient there is nothing to be sure of, and no floor.
    p = neyman_shares([4.0, 0.1, 0.1], uncentred=[4.0, 0.1, 0.1], rows=8)
    np.testing.assert_allclose(p, np.array([4.0, 0.1, 0.1]) / 4.2)
    # More domains than rows need no special case.
    p = neyman_shares(np.ones(40), uncentred=np.repeat([2.0, 6.0], 20), rows=8)
    np.testing.assert_allclose(8 * p, np.repeat([0.1, 0.3], 20))


@given(problems(), st.integers(-40, 40))
def test_units_and_order_do_not_matter(problem: Problem, power: int) -> None:
    p = problem.shares()
    factor = 2.0**power
    scaled = problem._replace(scale=problem.scale * factor, uncentred=problem.uncentred * factor)
    np.testing.assert_allclose(scaled.shares(), p, rtol=1e-9, atol=1e-12)
    back = slice(None, None, -1)
    turned = Problem(
        problem.scale[back],
        problem.uncentred[back],
        problem.rows,
        problem.lower[back],
        problem.upper[back],
    )
    np.testing.assert_allclose(turned.shares()[back], p, atol=1e-12)


@given(problems())
def test_limits(problem: Problem) -> None:
    # Without mean gradients, and with counts that are all large, the plain allocation is left.
    plain = neyman_shares(problem.scale, lower=problem.lower, upper=problem.upper)
    alike = problem._replace(uncentred=problem.scale)
    np.testing.assert_allclose(alike.shares(), plain, atol=1e-12)
    v = problem.scale + problem.scale.max() * 1e-3 + 1e-30
    large = neyman_shares(v, uncentred=2.0 * v, rows=1e9)
    np.testing.assert_allclose(large, neyman_shares(v), rtol=1e-6)
    # One row is in one domain, which is as good as absent elsewhere: s counts.
    s = problem.uncentred + problem.uncentred.max() * 1e-3 + 1e-30
    one = neyman_shares(np.minimum(problem.scale, s), uncentred=s, rows=1)
    np.testing.assert_allclose(one, neyman_shares(s), rtol=1e-9)


# Relative variance at the optimum, ‖μ‖ = 2 or ½ or 1, log-normal v, equal importance. 0.1 had
# 1.26, 1.39, .88, .48 and .52 in the first five.
@pytest.mark.parametrize(
    ("K", "rows", "mean", "expected"),
    [(50, 16, 2.0, 0.83), (20, 16, 2.0, 0.72), (10, 16, 2.0, 0.58), (50, 16, 0.5, 0.46)],
)
def test_what_the_rule_reaches(K: int, rows: int, mean: float, expected: float) -> None:
    """Means over 200 draws of v scatter by less than .02; the figures are of one draw each."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(200):
        v = rng.lognormal(size=K)
        s = np.hypot(v, mean)

        def variance(b: FloatArray, v: FloatArray = v, s: FloatArray = s) -> float:
            return float(np.where(b < 1.0, s**2 / b - (s**2 - v**2), v**2 / b).sum())

        best = variance(rows * neyman_shares(v, uncentred=s, rows=rows))
        even = variance(np.full(K, rows / K))
        neyman = variance(rows * neyman_shares(v))
        assert best <= min(even, neyman) * (1.0 + 1e-12)
        ratios.append(best / even)
    assert np.quantile(ratios, 0.02) <= expected <= np.quantile(ratios, 0.98)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncentred": [1.0, 1.0]}, r"rows must be given with uncentred; got None"),
        ({"uncentred": [0.5, 2.0], "rows": 4}, r"uncentred must be at least scale; got 0.5 < 1 at"),
        ({"uncentred": [2.0], "rows": 4}, r"uncentred must have one value per domain \(2\); got 1"),
        ({"uncentred": [2.0, 2.0], "rows": 0}, r"rows must be finite and in \(0, inf\); got 0"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neyman_shares([1.0, 1.0], **options)
