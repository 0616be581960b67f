"""joint_weights against SLSQP on both weights at once, its certificate, and the laws it obeys.

Also tests ``solvers/_program.py``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from adaptmix._checks import FloatArray
from adaptmix.solvers import fgls_weights, joint_weights, neyman_shares
from tests.solvers.certificates import joint_residual
from tests.solvers.joint_problems import TOLERANCE, mass, problems, residual, wide

DATA: dict[str, Any] = {"importance": np.full(3, 1 / 3), "draws": 20}


@given(problems(degenerate=True))
def test_certificate(problem: dict[str, Any]) -> None:
    solution = joint_weights(**problem)
    assert residual(solution, problem) <= TOLERANCE
    assert np.isfinite(solution.loss).all() and np.isfinite(solution.value)
    assert abs(mass(problem) @ solution.loss - 1.0) < 1e-12
    assert abs(solution.sampling.sum() - 1.0) < 1e-12
    assert (solution.loss[solution.sampling == 0.0] == 0.0).all()


@given(problems())
def test_shares_are_neyman_shares_of_their_own_loss_weights(problem: dict[str, Any]) -> None:
    solution = joint_weights(**problem)
    scale = mass(problem) * solution.loss * np.sqrt(problem["grad_var"])
    lower, upper = problem["share_bounds"]
    shares = neyman_shares(scale, lower=lower, upper=upper)
    np.testing.assert_allclose(solution.sampling, shares, rtol=0, atol=TOLERANCE)


@given(problems())
def test_an_endless_horizon_gives_fgls(problem: dict[str, Any]) -> None:
    problem |= {"draws": math.inf}
    data = {name: problem[name] for name in ("importance", "sizes")}
    expected = mass(problem) * fgls_weights(problem["noise"], **data)
    found = mass(problem) * joint_weights(**problem).loss
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_long_horizon_approaches_fgls() -> None:
    rng = np.random.default_rng(0)
    grad_var, noise, pi, n = rng.lognormal(0.0, 1.0, (4, 8))
    fgls = fgls_weights(noise, importance=pi, sizes=n)
    distances = [
        np.abs(
            joint_weights(grad_var, noise, importance=pi, sizes=n, draws=16 * steps).loss - fgls
        ).max()
        for steps in (1e2, 1e4, 1e6, math.inf)
    ]
    assert (np.diff(distances) < 0.0).all() and distances[-1] < 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_equals_a_general_solver_on_both_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, kappa = 5, 1.0 / 32
    grad_var, noise, pi, n = rng.lognormal(0.0, 0.7, (4, size))
    pi /= pi.sum()
    strength = np.sqrt(grad_var) / noise

    def value(x: FloatArray) -> float:
        u, p = x[:size], x[size:]
        return float((u**2 * (1.0 / n + kappa / p)).sum())

    def gradient(x: FloatArray) -> FloatArray:
        u, p = x[:size], x[size:]
        return np.concatenate((2 * u * (1.0 / n + kappa / p), -(u**2) * kappa / p**2))

    # u = π w v, so that Σ π w h = Σ u s; its constant is free.
    row = np.concatenate((strength, np.zeros(size)))
    ones = np.concatenate((np.zeros(size), np.ones(size)))
    found = minimize(
        value,
        np.concatenate((1.0 / strength / size, np.full(size, 1.0 / size))),
        jac=gradient,
        bounds=[(0.0, None)] * size + [(0.05, 0.5)] * size,
        constraints=[
            {"type": "eq", "fun": lambda x: row @ x - 1.0, "jac": lambda _: row},
            {"type": "eq", "fun": lambda x: ones @ x - 1.0, "jac": lambda _: ones},
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    solution = joint_weights(
        grad_var, noise, importance=pi, sizes=n, draws=32, share_bounds=(0.05, 0.5)
    )
    u = pi * solution.loss * np.sqrt(grad_var)
    ours = np.concatenate((u / (u @ strength), solution.sampling))
    assert value(ours) <= found.fun * (1 + 1e-9)
    np.testing.assert_allclose(ours, found.x, atol=1e-4)
    assert solution.value == pytest.approx(value(np.concatenate((u, solution.sampling))))


def test_what_a_solution_promises_over_other_weights() -> None:
    data: dict[str, Any] = {"sizes": np.full(3, 10.0), **DATA, "share_bounds": (0.1, 1.0)}
    solution = joint_weights([9.0, 4.0, 1.0], [1.0, 2.0, 1.0], **data)
    assert solution.promises(solution.loss, solution.sampling) == 0.0
    loss, shares = np.ones(3), np.full(3, 1 / 3)
    errors = []
    for w, p in ((loss, shares), (solution.loss, solution.sampling)):
        spent = (w**2 * np.array([9.0, 4.0, 1.0]) * (1 / 10 + 1 / 20 / p)).sum()
        errors.append(spent / (w @ [9.0, 2.0, 1.0]) ** 2)
    assert solution.promises(loss, shares) == pytest.approx(1.0 - errors[1] / errors[0])


def test_beats_every_perturbation() -> None:
    rng = np.random.default_rng(1)
    grad_var, noise, pi, n = rng.lognormal(0.0, 1.0, (4, 6))
    data: dict[str, Any] = {"importance": pi, "sizes": n, "draws": 4000}
    solution = joint_weights(grad_var, noise, **data)

    def value(w: FloatArray, p: FloatArray) -> float:
        curvature = pi @ (w * grad_var / noise)
        return float((pi**2 * w**2 * grad_var * (1 / n + 1 / 4000 / p)).sum() / curvature**2)

    best = value(solution.loss, solution.sampling)
    for _ in range(200):
        w = solution.loss * rng.lognormal(0.0, 0.1, 6)
        p = solution.sampling * rng.lognormal(0.0, 0.1, 6)
        assert value(w, p / p.sum()) >= best * (1 - 1e-12)
        assert joint_residual(grad_var, noise, w, p / p.sum(), **data) > 1e-3


@settings(max_examples=50)
@given(problems(), st.integers(-40, 40), st.integers(-40, 40))
def test_units_and_order_do_not_matter(problem: dict[str, Any], first: int, second: int) -> None:
    solution = joint_weights(**problem)
    units = {
        "grad_var": problem["grad_var"] * 4.0**first,
        "noise": problem["noise"] * 2.0**second,
        "importance": problem["importance"] * 2.0**first,
    }
    scaled = joint_weights(**{**problem, **units})
    np.testing.assert_array_equal(scaled.loss, solution.loss)
    np.testing.assert_array_equal(scaled.sampling, solution.sampling)
    back: dict[str, Any] = {
        name: value[::-1] if isinstance(value, np.ndarray) else value
        for name, value in problem.items()
    }
    lower, upper = problem["share_bounds"]
    back["share_bounds"] = (lower[::-1], upper[::-1])
    turned = joint_weights(**back)
    # Where κ' n dwarfs a share, the share is known to κ' n roundings only, the value fully.
    assert turned.value == pytest.approx(solution.value, rel=1e-9)
    assert residual(turned, back) <= TOLERANCE


@given(st.integers(1, 20), wide, wide, wide | st.just(math.inf), wide)
def test_equal_domains_share_evenly(
    size: int, grad_var: float, noise: float, n: float, draws: float
) -> None:
    one = np.ones(size)
    solution = joint_weights(
        grad_var * one, noise * one, importance=one, sizes=n * one, draws=draws
    )
    np.testing.assert_allclose(solution.sampling, 1.0 / size, rtol=1e-9)
    np.testing.assert_allclose(solution.loss, 1.0, rtol=1e-9)


def test_infinite_sizes() -> None:
    # Φ is linear: all to the largest v/σ², half each to two equal ones, what a bound leaves next.
    every = np.full(3, np.inf)
    one = joint_weights([9.0, 4.0, 1.0], np.ones(3), sizes=every, **DATA)
    np.testing.assert_array_equal(one.sampling, [1.0, 0.0, 0.0])
    two = joint_weights([4.0, 4.0, 1.0], np.ones(3), sizes=every, **DATA)
    np.testing.assert_allclose(two.sampling, [0.5, 0.5, 0.0])
    bound = joint_weights([4.0, 4.0, 1.0], np.ones(3), sizes=every, **DATA, share_bounds=(0.0, 0.4))
    np.testing.assert_allclose(bound.sampling, [0.4, 0.4, 0.2])
    # A finite domain rises until its marginal value meets the endless one's.
    mixed = joint_weights([9.0, 4.0, 1.0], np.ones(3), sizes=[3.0, np.inf, np.inf], **DATA)
    slope = 9.0 * 3.0**2 / 20 / (mixed.sampling[0] + 3.0 / 20) ** 2  # s² n² κ' / (p + κ' n)²
    assert slope == pytest.approx(4.0 * 20)
    assert mixed.sampling[2] == 0.0
    near = joint_weights([9.0, 4.0, 1.0], np.ones(3), sizes=[3.0, 1e12, 1e12], **DATA)
    np.testing.assert_allclose(near.sampling, mixed.sampling, atol=1e-9)


def test_zero_noise_takes_all_the_loss_weight() -> None:
    solution = joint_weights([1.0, 4.0, 2.0], [0.0, 0.0, 1.0], sizes=[5.0, 5.0, 5.0], **DATA)
    assert solution.loss[2] == 0.0 and solution.sampling[2] == 0.0
    near = joint_weights([1.0, 4.0, 2.0], [1e-9, 1e-9, 1.0], sizes=[5.0, 5.0, 5.0], **DATA)
    np.testing.assert_allclose(solution.loss, near.loss, atol=1e-6)
    np.testing.assert_allclose(solution.sampling, near.sampling, atol=1e-6)


def test_zero_gradient_variance_needs_no_share() -> None:
    solution = joint_weights(
        [1.0, 0.0, 2.0], np.ones(3), sizes=np.ones(3), **DATA, share_bounds=(0.1, 1.0)
    )
    assert solution.sampling[1] == 0.1
    samples = 1.0 / (1.0 + 1.0 / 20 / solution.sampling)
    np.testing.assert_allclose(solution.loss, 3 * samples / samples.sum())
    bounds = ([0.5, 0.0, 0.0], 1.0)
    still = joint_weights(np.zeros(3), np.ones(3), sizes=np.ones(3), **DATA, share_bounds=bounds)
    np.testing.assert_allclose(still.sampling, [0.5, 0.25, 0.25])
    assert still.value == 0.0
    free = joint_weights([1.0, 0.0, 2.0], np.ones(3), sizes=np.ones(3), **DATA)
    assert free.sampling[1] == 0.0 and free.loss[1] == 0.0


def test_a_hundred_thousand_domains() -> None:
    rng = np.random.default_rng(0)
    grad_var, noise, pi, n = rng.lognormal(0.0, 4.0, (4, 100_000))
    problem: dict[str, Any] = {"grad_var": grad_var, "noise": noise, "importance": pi, "sizes": n}
    problem |= {"draws": 640, "share_bounds": (1e-7, 1e-4)}
    assert residual(joint_weights(**problem), problem) <= TOLERANCE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grad_var": [1.0, -1.0]}, r"grad_var must be >= 0; got -1 at 1"),
        ({"noise": [1.0, np.nan]}, r"noise must be finite; got nan at 1"),
        ({"sizes": [0.0, 1.0]}, r"sizes must be > 0; got 0 at 0"),
        ({"importance": [1.0]}, r"importance must have one value per domain \(2\); got 1"),
        ({"draws": 0}, r"draws must be finite and in \(0, inf\); got 0"),
        (
            {"share_bounds": (0.6, 1.0)},
            r"share_bounds: lower must add up to at most 1 .* got 1.2 with K=2",
        ),
        (
            {"share_bounds": (0.0, 0.4)},
            r"share_bounds: upper must add up to at least 1 .* got 0.8 with K=2",
        ),
        ({"bias_penalty": 1.0}, r"loss_mean must be given with bias_penalty > 0; got None with 1"),
        ({"bias_penalty": 1.0, "noise": [0.0, 1.0]}, r"noise must be > 0; got 0 at 0"),
        ({"share_bounds": ([0.5, 0.0], [0.4, 1.0])}, r"got 0.5 > 0.4 at 0"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "grad_var": [1.0, 2.0],
        "noise": [1.0, 1.0],
        "importance": [0.5, 0.5],
        "sizes": [9.0, 9.0],
        "draws": 40,
    }
    with pytest.raises(ValueError, match=message):
        joint_weights(**arguments | options)
