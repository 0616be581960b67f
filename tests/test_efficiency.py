"""Laws of the variance ratio, THEORY §2 and §7."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix import efficiency
from adaptmix.checks import FloatArray
from adaptmix.solvers import neyman_shares
from adaptmix.types import DomainStats, Weights
from tests.helpers_data import simplex


def variance_ratio(shares: FloatArray, weights: Weights, grad_var: FloatArray) -> float:
    return efficiency.variance_ratio(shares, weights, DomainStats(grad_var=grad_var))


def predicted_gain(weights: Weights, grad_var: FloatArray) -> float:
    return efficiency.predicted_gain(weights, DomainStats(grad_var=grad_var))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Weights, FloatArray, FloatArray]:
    """Weights, within-domain variances and some other shares."""
    K = draw(st.integers(1, 6))
    positive = st.lists(st.floats(1e-4, 1e4), min_size=K, max_size=K)
    pi, w, shares = simplex(draw(positive)), simplex(draw(positive)), simplex(draw(positive))
    return Weights(shares, w / (pi @ w), pi), np.array(draw(positive)), shares


def scales(weights: Weights, grad_var: FloatArray) -> list[float]:
    """Return a = π w v."""
    return [
        pi * w * math.sqrt(v)
        for pi, w, v in zip(weights.importance, weights.loss, grad_var, strict=True)
    ]


@given(problem=problems())
def test_the_ratio_is_one_at_neyman_shares(
    problem: tuple[Weights, FloatArray, FloatArray],
) -> None:
    weights, grad_var, _ = problem
    best = neyman_shares(np.array(scales(weights, grad_var)))
    assert variance_ratio(best, weights, grad_var) == pytest.approx(1.0, rel=1e-12)


@given(problem=problems())
def test_the_ratio_is_the_formula_and_never_below_one(
    problem: tuple[Weights, FloatArray, FloatArray],
) -> None:
    weights, grad_var, shares = problem
    a = scales(weights, grad_var)
    in_force = math.fsum(value**2 / p for value, p in zip(a, shares, strict=True))
    ratio = variance_ratio(shares, weights, grad_var)
    assert ratio == pytest.approx(in_force / math.fsum(a) ** 2, rel=1e-10)
    assert ratio >= 1.0 - 1e-12


@given(problem=problems(), scale=st.floats(1e-280, 1e280))
def test_the_ratio_does_not_see_the_unit_of_gradients(
    problem: tuple[Weights, FloatArray, FloatArray], scale: float
) -> None:
    weights, grad_var, shares = problem
    assert variance_ratio(shares, weights, grad_var * scale) == pytest.approx(
        variance_ratio(shares, weights, grad_var), rel=1e-10
    )


@given(problem=problems())
def test_predicted_gain_is_the_factor_over_sampling_by_importance(
    problem: tuple[Weights, FloatArray, FloatArray],
) -> None:
    weights, grad_var, _ = problem
    a = scales(weights, grad_var)
    by_importance = math.fsum(v**2 / p for v, p in zip(a, weights.importance, strict=True))
    expected = by_importance / math.fsum(a) ** 2
    assert predicted_gain(weights, grad_var) == pytest.approx(expected, rel=1e-10)


def test_alike_domains_leave_nothing_to_gain() -> None:
    assert predicted_gain(Weights.proportional([0.2, 0.8]), np.full(2, 7.0)) == pytest.approx(1.0)


def test_domains_without_variance_need_no_samples() -> None:
    weights = Weights.proportional([0.5, 0.5])
    assert variance_ratio(np.array([1.0, 0.0]), weights, np.array([3.0, 0.0])) == 1.0
    assert predicted_gain(weights, np.array([3.0, 0.0])) == 2.0


def test_unknown_domains_are_left_out() -> None:
    weights = Weights.proportional([0.25, 0.25, 0.5])
    shares = np.array([0.3, 0.2, 0.5])
    ratio = variance_ratio(shares, weights, np.array([1.0, 4.0, np.nan]))
    assert ratio == pytest.approx((1.0 / 0.3 + 4.0 / 0.2) / 9.0)


@pytest.mark.parametrize("grad_var", [[np.nan, np.nan], [0.0, 0.0], [0.0, np.nan]])
def test_nothing_known_means_nothing_to_gain(grad_var: list[float]) -> None:
    weights = Weights.proportional([0.5, 0.5])
    assert variance_ratio(np.array([0.9, 0.1]), weights, np.array(grad_var)) == 1.0


def test_a_noisy_domain_that_is_not_sampled_makes_the_variance_infinite() -> None:
    weights = Weights.proportional([0.5, 0.5])
    assert variance_ratio(np.array([1.0, 0.0]), weights, np.ones(2)) == np.inf
    # However little noise it has: never NaN.
    assert variance_ratio(np.array([1.0, 0.0]), weights, np.array([1e300, 1e-300])) == np.inf


@given(problem=problems(), data=st.data())
def test_multinomial_variance_is_that_of_independent_draws(
    problem: tuple[Weights, FloatArray, FloatArray], data: st.DataObject
) -> None:
    weights, grad_var, shares = problem
    K = len(shares)
    means = np.array(data.draw(st.lists(st.floats(-10, 10), min_size=3 * K, max_size=3 * K)))
    means = means.reshape(K, 3)
    stats = DomainStats(
        grad_var=grad_var, grad_sq=grad_var + (means**2).sum(1), grad_gram=means @ means.T
    )

    def variance(p: FloatArray) -> float:
        # E‖g‖² − ‖E g‖² of one draw's multiplied gradient.
        multipliers = weights.importance * weights.loss / p
        mean = (p * multipliers) @ means
        return float((p * multipliers**2) @ stats.grad_sq - mean @ mean)

    best = neyman_shares(weights.importance * weights.loss * np.sqrt(stats.grad_sq))
    ratio = efficiency.variance_ratio(shares, weights, stats, sampler="multinomial")
    assert ratio == pytest.approx(variance(shares) / variance(best), rel=1e-6)
    assert efficiency.variance_ratio(best, weights, stats, sampler="multinomial") == pytest.approx(
        1.0
    )
