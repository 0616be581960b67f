"""Laws of the variance ratio, THEORY §2 and §7."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix._checks import FloatArray
from adaptmix._types import DomainStats, Weights
from adaptmix.monitoring import _efficiency as efficiency
from adaptmix.policies._variance import StepVariance
from adaptmix.solvers import neyman_shares
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


def test_unknown_domains_are_taken_to_be_as_the_others() -> None:
    weights = Weights.proportional([0.25, 0.25, 0.5])
    shares = np.array([0.3, 0.2, 0.5])
    ratio = variance_ratio(shares, weights, np.array([1.0, 4.0, np.nan]))
    assert ratio == pytest.approx(variance_ratio(shares, weights, np.array([1.0, 4.0, 2.5])))


@pytest.mark.parametrize(
    ("b", "expected"),
    [(0.5, 5.0 / 0.5 - 4.0), (1.0, 1.0), (1.5, 0.75), (2.0, 0.5), (2.5, (1 / 2 + 1 / 3) / 2)],
)
def test_a_domains_part_of_the_variance_at_small_counts(b: float, expected: float) -> None:
    """a² (s²/b − ‖μ‖²) where it may be absent, a² v² E[1/n] where it is not: v = 1, ‖μ‖ = 2."""
    used, stats = np.array([1.0, 0.0]), DomainStats(grad_var=[1.0, 1.0], grad_sq=[5.0, 5.0])
    variance = StepVariance.of(used, stats, rows=8, sampler=None)
    at = variance.at(np.array([b, 8.0 - b]) / 8.0)
    assert at * 5.0 == pytest.approx(expected)  # relative to the largest a² s²


def test_rows_are_counted_where_the_unit_is_tokens() -> None:
    """One short and one long domain: half of the tokens are a fifth of the rows."""
    stats = DomainStats(grad_var=[4.0, 1.0], grad_sq=[4.0, 1.0], tokens_per_row=[4.0, 1.0])
    weights = Weights.proportional([0.5, 0.5])
    variance = StepVariance.of(weights.importance, stats, rows=10, sampler=None)
    np.testing.assert_allclose(variance.row_shares(weights.importance), [0.2, 0.8])
    np.testing.assert_allclose(variance.unit_shares(np.array([0.2, 0.8])), [0.5, 0.5])
    # Two rows of variance 4/4 and eight of 1.
    assert variance.at(np.array([0.2, 0.8])) == pytest.approx(1.0 / 2 + 1.0 / 8)
    by_rows = efficiency.variance_ratio(weights.importance, weights, stats, rows=10)
    assert by_rows == pytest.approx((1.0 / 2 + 1.0 / 8) / (1.0 / 5 + 1.0 / 5))


def test_the_gain_of_shares_is_below_one_where_they_do_harm() -> None:
    stats = DomainStats(grad_var=[1.0, 1.0])
    assert efficiency.sampling_gain(
        Weights([0.9, 0.1], [1.0, 1.0], [0.5, 0.5]), stats
    ) == pytest.approx(4.0 / (1.0 / 0.9 + 1.0 / 0.1))
    assert efficiency.sampling_gain(Weights.proportional([0.3, 0.7]), stats) == 1.0
    assert efficiency.sampling_gain(Weights.proportional([0.3, 0.7]), DomainStats(seen=[1, 1])) == 1


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
