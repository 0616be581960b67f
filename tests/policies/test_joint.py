"""Joint against its formula written out; ``test_joint_bias.py`` has the bias that it measures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adaptmix import Domains, DomainStats
from adaptmix.policies import (
    FGLS,
    Joint,
    Run,
    VarianceAware,
    chain,
)
from adaptmix.solvers import joint_weights, neyman_shares
from tests.policies.cases import INFO, PI, STATS, run


def test_joint_that_ignores_bias_is_its_own_limit_of_noise_alone() -> None:
    weights = run(Joint(bias="ignored", lower=0.02), INFO, STATS)
    limit = run(chain(FGLS(), VarianceAware(lower=0.02)), INFO, STATS)
    np.testing.assert_allclose(weights.loss, limit.loss, rtol=1e-9)
    np.testing.assert_allclose(weights.sampling, limit.sampling, rtol=1e-9)


def test_joint_with_sizes_is_the_whole_program() -> None:
    policy = Joint(bias="ignored", use_sizes=True, lower=0.05)
    weights = run(policy, INFO, STATS, of=Run(20, 10))
    solution = joint_weights(
        STATS.grad_var,
        STATS.noise,
        importance=PI,
        sizes=INFO.sizes,
        draws=200,
        share_bounds=(0.05, 1.0),
    )
    np.testing.assert_allclose(weights.loss, solution.loss, rtol=1e-14)
    scale = PI * weights.loss * np.sqrt(STATS.grad_var)
    np.testing.assert_allclose(weights.sampling, neyman_shares(scale, lower=0.05), rtol=1e-9)


def test_joint_takes_the_limit_where_the_whole_program_promises_little() -> None:
    stats = DomainStats(grad_var=[1.0, 1e4], noise=[1.0, 100.0])  # equal v/σ²: a tie
    info = Domains(("flat", "steep"), [500, 500])
    policy, of = Joint(bias="ignored", use_sizes=True), Run(16, 75)
    weights, state = policy.update(stats, policy.init(info, of))
    limit = run(chain(FGLS(), VarianceAware()), info, stats, of=of)
    np.testing.assert_allclose(weights.loss, limit.loss, rtol=1e-12)
    np.testing.assert_allclose(weights.sampling, limit.sampling, rtol=1e-12)
    luck = DomainStats(grad_var=[1.1, 1e4], noise=[0.95, 100.0])
    weights, _ = policy.update(luck, state)  # by estimates that are a little off, too
    limit = run(chain(FGLS(), VarianceAware()), info, luck, of=of)
    np.testing.assert_allclose(weights.sampling, limit.sampling, rtol=1e-12)


def test_joint_averages_the_curvature_when_sizes_count() -> None:
    policy, of = Joint(bias="ignored", use_sizes=True), Run(20, 10)
    state = policy.init(INFO, of)
    # v² is off by these and σ² right. Their logarithms' mean is 0, for an older update counts less.
    count = np.array([30.0, 10.0, 20.0, 10.0])
    for factor, samples in ((4.0, count / 2.0), (0.5**0.95, count)):
        off = STATS.grad_var * [factor, 1.0, 1.0 / factor, 1.0]
        stats = DomainStats(grad_var=off, noise=STATS.noise, count=samples)
        weights, state = policy.update(stats, state)
    expected = run(policy, INFO, STATS, of=of)
    np.testing.assert_allclose(weights.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(weights.sampling, expected.sampling, rtol=1e-12)


def test_joint_forgets_what_it_filled_in_for_a_domain_that_nobody_had_seen() -> None:
    policy, of = Joint(bias="ignored", use_sizes=True), Run(20, 10)
    state = policy.init(INFO, of)
    nothing = [0.0, 10.0, 10.0, 10.0]
    unseen = DomainStats(grad_var=STATS.grad_var, noise=[math.nan, *STATS.noise[1:]], count=nothing)
    weights, state = policy.update(unseen, state)
    limit = run(chain(FGLS(use_sizes=True), VarianceAware()), INFO, unseen, of=of)
    np.testing.assert_allclose(weights.sampling, limit.sampling, rtol=1e-12)
    weights, _ = policy.update(STATS, state)
    expected = run(policy, INFO, STATS, of=of)
    assert np.abs(expected.sampling - run(Joint(bias="ignored"), INFO, STATS).sampling).max() > 0.01
    np.testing.assert_allclose(weights.sampling, expected.sampling, rtol=1e-12)


@pytest.mark.parametrize("use_sizes", [False, True])
def test_joint_shifts_the_mean_loss_less_where_that_has_a_price(use_sizes: bool) -> None:
    of = Run(20, 300)
    shift = [
        abs(float(PI * (weights.loss - 1.0) @ STATS.loss_mean))
        for weights in (
            run(
                Joint(bias="ignored", use_sizes=use_sizes, bias_penalty=penalty), INFO, STATS, of=of
            )
            for penalty in (0.0, 1.0, 1e3)
        )
    ]
    assert shift[0] > shift[1] > shift[2]
    assert shift[2] < 0.01 * shift[0]
    with pytest.raises(ValueError, match="bias_penalty must be finite and in"):
        Joint(bias="ignored", bias_penalty=-1.0).init(INFO, Run())


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"lower must be in \[0, 1/K\]; got 0.4 with K=4"):
        Joint(lower=0.4).init(INFO, Run())
    with pytest.raises(ValueError, match=r"horizon must be known with Joint\(use_sizes=True\)"):
        Joint(bias="ignored", use_sizes=True).init(INFO, Run(4))
    with pytest.raises(ValueError, match="use_sizes must be left out where bias is measured"):
        Joint(use_sizes=True).init(INFO, Run(4, 9))
