"""Variance-aware sampling against its formula written out."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix import Domains, DomainStats
from adaptmix.monitoring._efficiency import sampling_gain, variance_ratio
from adaptmix.policies import (
    FGLS,
    Policy,
    Run,
    Shrink,
    VarianceAware,
    chain,
)
from adaptmix.policies._names import named
from adaptmix.solvers import neyman_shares
from tests.policies.cases import INFO, PI, STATS, run


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


def test_chain_samples_for_the_loss_weights_before_it() -> None:
    weights = run(chain(FGLS(), VarianceAware(lower=0.01)), INFO, STATS)
    loss = run(FGLS(), INFO, STATS).loss
    scale = PI * loss * np.sqrt(STATS.grad_var)
    np.testing.assert_allclose(weights.loss, loss)
    np.testing.assert_allclose(weights.sampling, neyman_shares(scale, lower=0.01))


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


def test_a_floor_that_domains_cannot_keep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lower must be in \[0, 1/K\]; got 0.4 with K=4"):
        VarianceAware(lower=0.4).init(INFO, Run())
