"""What each policy computes, against its formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adaptmix import Domains, DomainStats
from adaptmix.monitoring._efficiency import sampling_gain, variance_ratio
from adaptmix.policies import (
    ERMA,
    FGLS,
    NAMED,
    Joint,
    Policy,
    Run,
    Shrink,
    Static,
    VarianceAware,
    chain,
)
from adaptmix.policies._names import named, with_shrinkage
from adaptmix.solvers import gap_weights, joint_weights, neyman_shares
from tests.policies.cases import run

INFO = Domains(("a", "b", "c", "d"), [100, 400, 50, 250], [0.4, 0.3, 0.2, 0.1])
STATS = DomainStats(
    loss_mean=[1.0, 2.0, 0.5, 1.5],
    loss_var=[0.3, 1.0, 0.1, 4.0],
    noise=[1.0, 4.0, 0.5, 2.0],
    grad_var=[1.0, 9.0, 4.0, 0.25],
)
PI = INFO.importance


def test_variance_aware_is_neyman_allocation() -> None:
    weights = run(VarianceAware(lower=0.0), INFO, STATS)
    scale = PI * np.sqrt(STATS.grad_var)
    np.testing.assert_allclose(weights.sampling, scale / scale.sum())
    assert weights.loss.tolist() == [1.0] * 4
    assert variance_ratio(weights.sampling, weights, STATS) == pytest.approx(1.0)


@pytest.mark.parametrize("policy", [VarianceAware(lower=0.0), chain(Shrink(), VarianceAware(0.0))])
def test_a_domain_without_pairs_goes_by_its_own_second_moment(policy: Policy) -> None:
    nan, count = np.nan, [np.inf] * 4
    halves = DomainStats(grad_var=[1.0, 8.0, nan, 3.0], grad_sq=[2.0, 16.0, 100.0, 6.0])
    told = DomainStats(grad_var=[1.0, 8.0, 50.0, 3.0])
    np.testing.assert_allclose(run(policy, INFO, halves).sampling, run(policy, INFO, told).sampling)
    # No variance exceeds the second moment, whatever the noise of its estimate.
    noisy = DomainStats(grad_var=[3.0, 24.0, nan, 9.0], grad_sq=[2.0, 16.0, 9.0, 6.0], count=count)
    told = DomainStats(grad_var=[2.0, 16.0, 9.0, 6.0])
    np.testing.assert_allclose(run(policy, INFO, noisy).sampling, run(policy, INFO, told).sampling)


def test_multinomial_rows_pay_for_the_second_moment() -> None:
    stats = DomainStats(grad_var=[1.0, 1.0, np.nan, 1.0], grad_sq=[2.0, 16.0, 9.0, 1.0])
    scale = PI * np.sqrt(stats.grad_sq)
    drawn = run(VarianceAware(lower=0.0), INFO, stats, of=Run(counts="multinomial"))
    np.testing.assert_allclose(drawn.sampling, scale / scale.sum())


def test_fgls_is_inverse_noise() -> None:
    weights = run(FGLS(), INFO, STATS)
    expected = 1.0 / STATS.noise
    np.testing.assert_allclose(weights.loss, expected / (PI @ expected))
    sized = run(FGLS(use_sizes=True), INFO, STATS).loss
    expected = INFO.sizes / (PI * STATS.noise)
    np.testing.assert_allclose(sized, expected / (PI @ expected))


def test_chain_samples_for_the_loss_weights_before_it() -> None:
    weights = run(chain(FGLS(), VarianceAware(lower=0.01)), INFO, STATS)
    loss = run(FGLS(), INFO, STATS).loss
    scale = PI * loss * np.sqrt(STATS.grad_var)
    np.testing.assert_allclose(weights.loss, loss)
    np.testing.assert_allclose(weights.sampling, neyman_shares(scale, lower=0.01))


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


@pytest.mark.parametrize("use_sizes", [False, True])
@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_ermas_iterated_update_converges_to_the_exact_minimiser(
    use_sizes: bool, penalty: float
) -> None:
    step = ERMA(variance_penalty=penalty, use_sizes=use_sizes, rate=1.0)
    exact = ERMA(variance_penalty=penalty, use_sizes=use_sizes, exact=True)
    sizes = INFO.sizes / INFO.sizes.sum() if use_sizes else PI
    minimiser = gap_weights(
        STATS.loss_mean, STATS.loss_var, importance=PI, sizes=sizes, variance_penalty=penalty
    )
    np.testing.assert_array_equal(run(exact, INFO, STATS).loss, minimiser)
    near = run(step, INFO, STATS, updates=10_000).loss
    np.testing.assert_allclose(near, minimiser, atol=1e-3)


def test_static_normalises_what_it_is_given() -> None:
    policy = Static(
        sampling={"a": 2, "b": 2, "c": 2, "d": 4}, loss={"a": 1, "b": 1, "c": 1, "d": 11}
    )
    weights = run(policy, INFO, STATS)
    assert weights.sampling == pytest.approx([0.2, 0.2, 0.2, 0.4])
    assert weights.loss == pytest.approx([0.5, 0.5, 0.5, 5.5])
    with pytest.raises(ValueError, match="sampling must name exactly the domains a, b, c, d"):
        Static(sampling={"a": 1.0}).init(INFO, Run())


def test_by_default_a_domain_keeps_a_part_of_its_rows_where_that_costs_next_to_nothing() -> None:
    policy, of = VarianceAware(), Run(16, 100)
    # Nothing to learn from a tenth of the rows: its floor costs a hundredth of the variance.
    quiet = DomainStats(grad_var=[1.0, 1.0, 1.0, 1e-12])
    assert run(policy, INFO, quiet, of=of).sampling.min() == pytest.approx(0.1 * 0.1)
    # From 90 % of the rows, a tenth would cost a tenth: a smaller part has to do.
    loud = DomainStats(grad_var=[1e-12, 1e-12, 1e-12, 1.0])
    shares = run(policy, INFO, loud, of=of).sampling
    np.testing.assert_allclose(shares[:3], 0.01 * PI[:3])


def test_single_rows_are_enough_to_act_on() -> None:
    """No variance is known of any domain: second moments stand for both."""
    stats = DomainStats(grad_var=[np.nan] * 4, grad_sq=[1.0, 9.0, 4.0, 25.0])
    weights = run(VarianceAware(lower=0.0), INFO, stats, of=Run(4))
    scale = PI * np.sqrt(stats.grad_sq)
    np.testing.assert_allclose(weights.sampling, scale / scale.sum())


def test_rows_are_what_small_counts_are_counted_in() -> None:
    """Short answers of one token: 2.2 % of the tokens, a third of the rows.

    0.1 took its floor, one row of every batch, as a share of tokens, and harmed every domain.
    """
    lengths = np.array([1.0, 20.0, 24.0])
    info = Domains(("short", "b", "c"), [100] * 3, lengths / lengths.sum())
    stats = DomainStats(grad_var=[2.0, 2.0, 2.0], grad_sq=[2.0] * 3, tokens_per_row=lengths)
    for policy in (VarianceAware(), named("variance_aware")):
        weights = run(policy, info, stats, of=Run(8))
        gain = sampling_gain(weights, stats, rows=8)
        assert gain >= 1.0
        rows = weights.sampling / lengths
        assert rows[0] / rows.sum() < 1.0 / 3.0  # a token in the gradient needs no third of it


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_class_behaves_as_its_name(name: str) -> None:
    stages = NAMED[name]
    if len(stages) == 1:
        assert with_shrinkage(stages[0]()) == named(name)
    assert with_shrinkage(named(name)) == named(name)  # a chain stays as it is


def test_a_run_tells_what_a_policy_may_ask() -> None:
    assert with_shrinkage(Static()) == Static()  # it reads nothing, so there is nothing to shrink
    with pytest.raises(ValueError, match="counts must be one of stratified, multinomial"):
        Run(counts="poisson")
    with pytest.raises(ValueError, match="horizon must be an integer >= 1; got 0"):
        Run(8, 0)
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        Run(batch_size=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMED)
def test_names_make_policies(name: str) -> None:
    weights = run(named(name), INFO, STATS)
    assert weights.sampling.sum() == pytest.approx(1.0)


def test_named_policies_shrink_what_they_estimate() -> None:
    assert named("joint") == chain(Shrink(), Joint())
    assert named("fgls+variance_aware") == chain(Shrink(), FGLS(), VarianceAware())
    noisy = DomainStats(count=[9] * 4, seen=[9] * 4, noise=[1, 1.2, 0.8, 1], grad_var=[1, 2, 1, 1])
    weights = run(named("joint"), INFO, noisy)
    np.testing.assert_allclose(weights.loss, 1.0)
    np.testing.assert_allclose(weights.sampling, PI)


def test_bad_policies_are_named() -> None:
    with pytest.raises(ValueError, match=r"lower must be in \[0, 1/K\]; got 0.4 with K=4"):
        VarianceAware(lower=0.4).init(INFO, Run())
    with pytest.raises(ValueError, match=r"lower must be in \[0, 1/K\]; got 0.4 with K=4"):
        Joint(lower=0.4).init(INFO, Run())
    with pytest.raises(ValueError, match=r"horizon must be known with Joint\(use_sizes=True\)"):
        Joint(bias="ignored", use_sizes=True).init(INFO, Run(4))
    with pytest.raises(ValueError, match="use_sizes must be left out where bias is measured"):
        Joint(use_sizes=True).init(INFO, Run(4, 9))
    with pytest.raises(ValueError, match="rate must be finite and in"):
        ERMA(rate=2.0)
