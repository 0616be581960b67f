"""Standard errors against simulated estimates."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix._types import DomainStats, Weights
from adaptmix.monitoring._efficiency import predicted_gain
from adaptmix.monitoring._uncertainty import gain_error, grad_std_error, loss_error, noise_error

FREEDOM = np.array([40.0, 60.0, 25.0, 80.0])
WEIGHTS = Weights.proportional(np.array([0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize("variance", [[1.0, 1.0, 1.0, 1.0], [1.0, 4.0, 9.0, 0.5]])
def test_a_gains_error_and_bias_are_those_of_simulated_variances(variance: list[float]) -> None:
    # 4 000 draws: the deviation is known to 1.1 %, the mean to its error / 63. Third orders of the
    # expansion are left out, hence the 10 %.
    generator = np.random.default_rng(0)
    exact = np.array(variance)
    gains = []
    for _ in range(4000):
        drawn = exact * generator.chisquare(FREEDOM) / FREEDOM
        stats = DomainStats(count=FREEDOM, grad_var=drawn, grad_sq=drawn)
        gains.append(predicted_gain(WEIGHTS, stats))
    stats = DomainStats(count=FREEDOM, grad_var=exact, grad_sq=exact)
    gain = predicted_gain(WEIGHTS, stats)
    doubt = gain_error(gain, WEIGHTS, stats)
    assert doubt.error == pytest.approx(np.std(gains), rel=0.1)
    assert doubt.bias == pytest.approx(np.mean(gains) - gain, rel=0.1, abs=0.1 * doubt.error)


def test_multinomial_draws_go_by_second_moments() -> None:
    stats = DomainStats(count=FREEDOM, grad_var=np.full(4, np.nan), grad_sq=np.ones(4))
    assert gain_error(1.0, WEIGHTS, stats, sampler="multinomial").bias > 0.0
    assert np.isnan(gain_error(1.0, WEIGHTS, stats).bias)


def test_exact_statistics_have_no_error() -> None:
    stats = DomainStats(grad_var=np.array([1.0, 4.0, 9.0, 0.5]))
    assert gain_error(1.2, WEIGHTS, stats) == (0.0, 0.0)


def test_domains_without_freedom_are_left_out() -> None:
    freedom = np.array([40.0, 60.0, 0.0, 80.0])
    stats = DomainStats(count=FREEDOM, grad_freedom=freedom, grad_var=np.ones(4))
    assert np.isfinite(gain_error(1.0, WEIGHTS, stats).error)
    assert np.isnan(grad_std_error(stats)[2])


def test_errors_of_standard_deviations_losses_and_noise() -> None:
    generator = np.random.default_rng(1)
    normal = 3.0 * generator.standard_normal((20_000, 50))
    stats = DomainStats(
        count=[50.0],
        seen=[50.0],
        loss_mean=[0.0],
        loss_var=[9.0],
        noise=[9.0],
        grad_var=[9.0],
        grad_freedom=[49.0],
    )
    # 20 000 draws tell a deviation to 0.5 %; √(1 / 2f) itself is short of it by 1 / 8f.
    assert grad_std_error(stats)[0] == pytest.approx(normal.std(1, ddof=1).std(), rel=0.02)
    assert loss_error(stats, np.ones(1))[0] == pytest.approx(normal.mean(1).std(), rel=0.02)
    assert noise_error(stats)[0] == pytest.approx((normal**2).mean(1).std(), rel=0.02)
    # Per token, variances divide by tokens.
    assert loss_error(stats, np.array([4.0]))[0] == pytest.approx(np.sqrt(9.0 / 200.0))
