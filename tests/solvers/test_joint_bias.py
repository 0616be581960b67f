"""joint_weights with a price on bias: its certificate, its limits and a general solver."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from scipy.optimize import minimize

from adaptmix._checks import FloatArray
from adaptmix.solvers import gap_weights, joint_weights, neyman_shares
from tests.solvers.joint_problems import TOLERANCE, mass, penalised, residual


@given(penalised())
def test_certificate_with_a_bias_penalty(problem: dict[str, Any]) -> None:
    solution = joint_weights(**problem)
    assert residual(solution, problem) <= TOLERANCE
    assert abs(mass(problem) @ solution.loss - 1.0) < 1e-12
    scale = mass(problem) * solution.loss * np.sqrt(problem["grad_var"])
    np.testing.assert_allclose(solution.sampling, neyman_shares(scale), rtol=0, atol=TOLERANCE)


@given(penalised())
def test_without_curvature_a_bias_penalty_is_ermas(problem: dict[str, Any]) -> None:
    problem |= {"noise": problem["grad_var"], "draws": math.inf}
    penalty = 1.0 / problem["bias_penalty"]
    data = {name: problem[name] for name in ("loss_mean", "importance", "sizes")}
    expected = gap_weights(loss_var=problem["grad_var"], variance_penalty=penalty, **data)
    found = mass(problem) * joint_weights(**problem).loss
    np.testing.assert_allclose(found, mass(problem) * expected, rtol=0, atol=1e-6)


@given(penalised())
def test_equal_losses_have_no_bias_to_pay_for(problem: dict[str, Any]) -> None:
    problem |= {"loss_mean": np.full_like(problem["noise"], 2.0)}
    free = {**problem, "loss_mean": None, "bias_penalty": 0.0}
    found, expected = joint_weights(**problem), joint_weights(**free)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-9)
    np.testing.assert_allclose(found.sampling, expected.sampling, rtol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_a_penalised_optimum_equals_a_general_solvers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grad_var, noise, pi, n, losses = rng.lognormal(0.0, 0.7, (5, 4))
    pi /= pi.sum()
    lean, kappa, penalty = losses - pi @ losses, 1.0 / 32, 10.0 ** rng.uniform(-1.0, 1.0)
    signal = grad_var / noise

    def value(x: FloatArray) -> float:
        u, p = x[:4], x[4:]
        spent = float((u**2 * grad_var * (1.0 / n + kappa / p)).sum())
        return float((spent + penalty * (u @ lean) ** 2) / (u @ signal) ** 2)

    found = minimize(
        value,
        np.concatenate((pi, np.full(4, 0.25))),
        bounds=[(0.0, None)] * 4 + [(0.05, 0.6)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda x: x[:4].sum() - 1.0},
            {"type": "eq", "fun": lambda x: x[4:].sum() - 1.0},
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    solution = joint_weights(
        grad_var,
        noise,
        importance=pi,
        sizes=n,
        draws=32,
        share_bounds=(0.05, 0.6),
        loss_mean=losses,
        bias_penalty=penalty,
    )
    ours = value(np.concatenate((pi * solution.loss, solution.sampling)))
    assert ours <= found.fun * (1 + 1e-9)
    assert found.fun <= ours * (1 + 1e-3)  # SLSQP comes near


def test_the_dearer_bias_is_the_less_of_it_there_is() -> None:
    rng = np.random.default_rng(2)
    grad_var, noise, pi, n, losses = rng.lognormal(0.0, 1.0, (5, 6))
    pi /= pi.sum()
    biases = [
        abs(
            (pi * (losses - pi @ losses))
            @ joint_weights(
                grad_var,
                noise,
                importance=pi,
                sizes=n,
                draws=32,
                loss_mean=losses,
                bias_penalty=penalty,
            ).loss
        )
        for penalty in (0.0, 0.1, 1.0, 10.0, 1e6)
    ]
    assert (np.diff(biases) < 0.0).all() and biases[-1] < 1e-5
