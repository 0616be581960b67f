"""gap_weights against every active set in exact arithmetic and against SLSQP; its certificate."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from adaptmix._checks import FloatArray
from adaptmix.solvers import gap_weights
from tests.solvers.certificates import gap_residual

wide = st.floats(-15.0, 15.0).map(lambda exponent: 10.0**exponent)


@st.composite
def problems(draw: st.DrawFn, *, degenerate: bool) -> dict[str, Any]:
    size = draw(st.integers(1, 10))

    def column(values: st.SearchStrategy[float]) -> FloatArray:
        return np.array(draw(st.lists(values, min_size=size, max_size=size)))

    zero = st.just(0.0) if degenerate else wide
    return {
        "loss_mean": column(wide | st.floats(-1.0, 1.0)),
        "loss_var": column(wide | zero),
        "importance": column(draw(st.sampled_from([wide, st.just(1.0)]))),
        "sizes": column(wide | (st.just(np.inf) if degenerate else wide)),
        "variance_penalty": draw(wide | zero),
        "lower": draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]) | st.floats(0.0, 1.0)),
    }


def residual(problem: dict[str, Any], loss: FloatArray) -> float:
    data = {name: value for name, value in problem.items() if not name.startswith("loss_")}
    return gap_residual(problem["loss_mean"], problem["loss_var"], loss, **data)


def exact(values: FloatArray) -> list[Fraction]:
    return [Fraction(float(value)) for value in values]


class Exact:
    """The program in rational numbers: its value anywhere, and its minimiser from all 2^K sets."""

    def __init__(self, problem: dict[str, Any]) -> None:
        pi = exact(problem["importance"])
        self.pi = [value / sum(pi, Fraction(0)) for value in pi]
        self.lean = exact(problem["loss_mean"])
        penalty = Fraction(problem["variance_penalty"])
        data = zip(exact(problem["loss_var"]), exact(problem["sizes"]), strict=True)
        self.curvature = [penalty * variance / n for variance, n in data]
        self.floor = [Fraction(problem["lower"]) * value for value in self.pi]

    def value(self, u: list[Fraction]) -> Fraction:
        moves = zip(self.pi, u, self.lean, strict=True)
        bias = sum(((p - x) * mean for p, x, mean in moves), Fraction(0))
        spread = (d * x * x for d, x in zip(self.curvature, u, strict=True))
        return bias * bias + sum(spread, Fraction(0))

    def value_at(self, weights: FloatArray) -> Fraction:
        u = [p * w for p, w in zip(self.pi, exact(weights), strict=True)]
        return self.value([x / sum(u) for x in u])

    def minimise(self) -> list[Fraction]:
        """Solve D u = ν + g L on each set of free domains and keep what meets the conditions."""
        every = range(len(self.pi))
        for free in product((True, False), repeat=len(self.pi)):
            if not any(free):
                continue
            at = [i for i in every if free[i]]
            moments = [
                sum((self.lean[i] ** k / self.curvature[i] for i in at), Fraction(0))
                for k in range(3)
            ]
            held = [Fraction(0) if free[i] else self.floor[i] for i in every]
            mean = sum(((self.pi[i] - held[i]) * self.lean[i] for i in every), Fraction(0))
            mass = 1 - sum(held)
            determinant = moments[0] * (moments[2] + 1) - moments[1] ** 2
            nu = (mass * (moments[2] + 1) - mean * moments[1]) / determinant
            g = (moments[0] * mean - moments[1] * mass) / determinant
            u = [
                (nu + g * self.lean[i]) / self.curvature[i] if free[i] else self.floor[i]
                for i in every
            ]
            price = [self.curvature[i] * u[i] - g * self.lean[i] - nu for i in every]
            if all(u[i] >= self.floor[i] and price[i] >= 0 for i in every):
                return u
        raise AssertionError("no active set is optimal")


@pytest.mark.parametrize("spread", [0.5, 3.0, 6.0])
def test_equals_every_active_set_tried(spread: float) -> None:
    rng = np.random.default_rng(int(spread))
    for _ in range(40):
        size = int(rng.integers(1, 6))
        columns = 10.0 ** rng.uniform(-spread, spread, (4, size))
        problem = dict(
            zip(("loss_mean", "loss_var", "importance", "sizes"), columns, strict=True),
            variance_penalty=1.0,
            lower=float(rng.choice([0.0, 0.2, 0.9])),
        )
        program = Exact(problem)
        best = program.minimise()
        w = gap_weights(**problem)
        np.testing.assert_allclose(
            w * columns[2] / columns[2].sum(), [float(u) for u in best], rtol=0, atol=1e-13
        )
        assert float(program.value_at(w) / program.value(best)) - 1.0 <= 1e-9


@given(problems(degenerate=True))
def test_certificate(problem: dict[str, Any]) -> None:
    w = gap_weights(**problem)
    pi = problem["importance"] / problem["importance"].sum()
    assert np.isfinite(w).all() and (w >= problem["lower"]).all()
    assert abs(pi @ w - 1.0) < 1e-12
    assert residual(problem, w) <= 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_residual_bounds_the_excess_of_any_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.lognormal(0.0, 1.0, (4, 4))
    problem = dict(
        zip(("loss_mean", "loss_var", "importance", "sizes"), columns, strict=True),
        variance_penalty=0.3,
        lower=0.1,
    )
    program = Exact(problem)
    w = gap_weights(**problem) + rng.uniform(0.0, rng.choice([1e-6, 1e-3, 1.0]), 4)
    w /= (columns[2] / columns[2].sum()) @ w
    w = np.maximum(w, 0.1)
    excess = 1.0 - float(program.value(program.minimise()) / program.value_at(w))
    assert excess <= residual(problem, w) * (1 + 1e-6) + 1e-15
    assert residual(problem, w) > 1e-14


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_general_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, variance, pi, n = rng.lognormal(0.0, 0.7, (4, 6))
    pi /= pi.sum()
    w = gap_weights(mean, variance, importance=pi, sizes=n, lower=0.3)

    def value(u: FloatArray) -> float:
        return float(((pi - u) @ mean) ** 2 + (u**2 * variance / n).sum())

    found = minimize(
        value,
        pi,
        jac=lambda u: -2 * ((pi - u) @ mean) * mean + 2 * u * variance / n,
        bounds=list(zip(0.3 * pi, np.ones(6), strict=True)),
        constraints={"type": "eq", "fun": lambda u: u.sum() - 1.0, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert value(pi * w) <= found.fun * (1 + 1e-9)
    np.testing.assert_allclose(pi * w, found.x, atol=1e-6)


@given(st.lists(wide, min_size=1, max_size=10), wide, wide, st.floats(0.0, 1.0))
def test_equal_domains_keep_weight_one(
    importance: list[float], mean: float, variance: float, lower: float
) -> None:
    same = np.ones(len(importance))
    w = gap_weights(
        mean * same, variance * same, importance=importance, sizes=importance, lower=lower
    )
    np.testing.assert_allclose(w, 1.0, rtol=1e-12)


@given(problems(degenerate=False), st.integers(-60, 60))
def test_unit_and_order_do_not_matter(problem: dict[str, Any], exponent: int) -> None:
    pi = problem["importance"] / problem["importance"].sum()
    u = pi * gap_weights(**problem)
    unit = 2.0**exponent
    scaled = problem | {
        "loss_mean": problem["loss_mean"] * unit,
        "loss_var": problem["loss_var"] * unit**2,
    }
    np.testing.assert_array_equal(pi * gap_weights(**scaled), u)
    turned: dict[str, Any] = {
        name: value[::-1] if isinstance(value, np.ndarray) else value
        for name, value in problem.items()
    }
    np.testing.assert_allclose((pi * gap_weights(**turned)[::-1]), u, rtol=0, atol=1e-9)


def test_without_variance_the_nearest_minimiser_to_one() -> None:
    data: dict[str, Any] = {"importance": [0.2, 0.3, 0.5], "sizes": [10, 10, 10]}
    mean = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(gap_weights(mean, [0, 0, 0], **data), 1.0, rtol=1e-12)
    none = gap_weights(mean, [1, 2, 3], **data, variance_penalty=0.0)
    np.testing.assert_allclose(none, 1.0, rtol=1e-12)
    # A domain with variance beside three without: it goes to its floor, and the others lean by
    # w = 1 + α + β L so that no bias is left.
    pi = np.array([0.4, 0.1, 0.2, 0.3])
    mean = np.array([2.0, 1.0, 2.5, 3.0])
    sizes = [10, np.inf, np.inf, 10]
    w = gap_weights(mean, [1, 1, 1, 0], importance=pi, sizes=sizes, lower=0.5)
    assert w[0] == 0.5
    assert (pi * w) @ mean == pytest.approx(pi @ mean)
    assert np.ptp(np.diff(w[1:]) / np.diff(mean[1:])) < 1e-12


def test_limits() -> None:
    np.testing.assert_array_equal(gap_weights([3.0], [2.0], importance=[1.0], sizes=[5.0]), 1.0)
    data: dict[str, Any] = {"importance": [0.5, 0.5], "sizes": [1.0, 1.0]}
    np.testing.assert_allclose(gap_weights([1.0, 9.0], [1.0, 1e-3], **data, lower=1.0), 1.0)
    # A penalty that dwarfs the bias leaves inverse variances.
    strong = gap_weights([1.0, 2.0], [1.0, 3.0], **data, variance_penalty=1e12)
    np.testing.assert_allclose(strong, [1.5, 0.5], rtol=1e-9)
    weak = gap_weights([1.0, 2.0], [1.0, 3.0], **data, variance_penalty=1e-12)
    np.testing.assert_allclose(weak, 1.0, rtol=1e-9)


def test_many_domains() -> None:
    rng = np.random.default_rng(0)
    mean, variance, pi, n = rng.lognormal(0.0, 2.0, (4, 20_000))
    w = gap_weights(mean, variance, importance=pi, sizes=n, lower=0.2)
    data: dict[str, Any] = {"importance": pi, "sizes": n, "lower": 0.2}
    assert gap_residual(mean, variance, w, **data) <= 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_mean": [1.0, np.inf]}, r"loss_mean must be finite; got inf at 1"),
        ({"loss_var": [1.0, -1.0]}, r"loss_var must be >= 0; got -1 at 1"),
        ({"importance": [0.0, 1.0]}, r"importance must be > 0; got 0 at 0"),
        ({"sizes": [3.0]}, r"sizes must have one value per domain \(2\); got 1"),
        ({"lower": 1.5}, r"lower must be finite and in \[0, 1\]; got 1.5"),
        ({"variance_penalty": -1.0}, r"variance_penalty must be finite and in \[0, inf\]; got -1"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "loss_mean": [1.0, 2.0],
        "loss_var": [1.0, 1.0],
        "importance": [0.5, 0.5],
        "sizes": [1.0, 1.0],
    }
    with pytest.raises(ValueError, match=message):
        gap_weights(**arguments | options)
