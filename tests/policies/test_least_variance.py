"""The law of policies that change only sampling: never noisier than proportional sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaincinv
from scipy.stats import chi2

from adaptmix import Domains, DomainStats
from adaptmix._checks import FloatArray
from adaptmix.policies import FGLS, Joint, Policy, Run, VarianceAware, chain
from adaptmix.policies._least_variance import gamma_quantile, noise_gain
from adaptmix.policies._names import named
from adaptmix.policies._variance import StepVariance
from tests.policies.cases import run

SAMPLING_ONLY: dict[str, Callable[[], Policy]] = {
    "class": VarianceAware,
    "name": lambda: named("variance_aware"),
    "chained": lambda: chain(FGLS(), VarianceAware()),
    "joint": Joint,
}


def variance(shares: FloatArray, used: FloatArray, stats: DomainStats, rows: int) -> float:
    """Σ over domains of a² (s²/b − ‖μ‖²) for b < 1, a² v² E[1/n] from 1 on, one by one."""
    per_row = shares / stats.tokens_per_row
    total = 0.0
    for q, a, v, s, length in zip(
        per_row / per_row.sum(),
        used,
        stats.grad_var,
        stats.grad_sq,
        stats.tokens_per_row,
        strict=True,
    ):
        b = rows * q
        if b < 1.0 - 1e-9:
            total += a**2 / length * (s / b - (s - v))
        else:
            n = np.floor(b + 1e-9)
            total += a**2 / length * v * ((1.0 - (b - n)) / n + (b - n) / (n + 1.0))
    return total


@st.composite
def settings(draw: st.DrawFn) -> tuple[Domains, DomainStats, int]:
    """Up to 12 domains and from 1 to 16 rows, rows of 1 to 100 tokens, exact moments."""
    K = draw(st.integers(1, 12))

    def column(low: float, high: float) -> FloatArray:
        power = st.floats(np.log(low), np.log(high))
        values: FloatArray = np.exp(np.array(draw(st.lists(power, min_size=K, max_size=K))))
        return values

    v = column(1e-3, 1e3)
    mean = column(1e-3, 1e3) * draw(st.sampled_from([0.0, 1.0]))
    lengths = column(1.0, 100.0) if draw(st.booleans()) else np.ones(K)
    info = Domains([str(i) for i in range(K)], np.ones(K), column(1e-2, 1.0))
    stats = DomainStats(
        grad_var=v, grad_sq=v + mean, tokens_per_row=lengths, noise=column(0.3, 3.0)
    )
    return info, stats, draw(st.integers(1, 16))


@pytest.mark.parametrize("name", SAMPLING_ONLY)
@given(setting=settings())
def test_the_variance_is_never_above_that_of_proportional_sampling(
    name: str, setting: tuple[Domains, DomainStats, int]
) -> None:
    info, stats, rows = setting
    weights = run(SAMPLING_ONLY[name](), info, stats, of=Run(rows, 100))
    used = info.importance * weights.loss
    after = variance(weights.sampling, used, stats, rows)
    assert after <= variance(info.importance, used, stats, rows) * (1.0 + 1e-9)


@given(setting=settings(), data=st.data())
def test_within_bounds_it_is_never_above_that_of_the_nearest_shares(
    setting: tuple[Domains, DomainStats, int], data: st.DataObject
) -> None:
    info, stats, rows = setting
    K = len(info)
    lower = data.draw(st.floats(0.0, 1.0)) / K
    upper = data.draw(st.floats(1.0 / K, 1.0))
    weights = run(VarianceAware(lower=lower, upper=upper), info, stats, of=Run(rows))
    per_row = weights.sampling / stats.tokens_per_row
    q = per_row / per_row.sum()
    assert (q >= lower * (1 - 1e-9)).all() and (q <= upper * (1 + 1e-9)).all()
    proportional = info.importance / stats.tokens_per_row
    proportional /= proportional.sum()
    if (proportional >= max(lower, 1e-5)).all() and (proportional <= upper).all():
        after = variance(weights.sampling, info.importance, stats, rows)
        before = variance(info.importance, info.importance, stats, rows)
        assert after <= before * (1.0 + 1e-9)


@given(setting=settings(), data=st.data())
def test_where_domains_take_turns_it_holds_too(
    setting: tuple[Domains, DomainStats, int], data: st.DataObject
) -> None:
    info, stats, rows = setting
    K = len(info)
    mean = np.sqrt(np.maximum(stats.grad_sq - stats.grad_var, 0.0) / stats.tokens_per_row)
    signs = np.array(data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=K, max_size=K)))
    aligned = mean * signs
    stats = stats.replaced(grad_gram=np.outer(aligned, aligned))
    weights = run(VarianceAware(), info, stats, of=Run(rows))
    model = StepVariance.of(info.importance, stats, rows=rows, sampler="stratified")
    after, before = (
        model.at(model.row_shares(shares)) for shares in (weights.sampling, info.importance)
    )
    assert after <= before * (1.0 + 1e-9)
    assert after >= 0.0


def test_it_goes_only_as_far_as_helps_where_whole_counts_are_better() -> None:
    """Two rows each, exactly: 1/b would gain 1 %, yet 1.8 and 2.2 rows are noisier than two."""
    v = np.array([0.8, 1.2, 0.8, 1.2]) ** 2
    info = Domains(("a", "b", "c", "d"), [1] * 4)
    stats = DomainStats(grad_var=v, grad_sq=v)
    weights = run(VarianceAware(), info, stats, of=Run(8))
    np.testing.assert_array_equal(weights.sampling, np.full(4, 0.25))
    # With 800 rows the whole gain is there.
    weights = run(VarianceAware(lower=0.0), info, stats, of=Run(800))
    np.testing.assert_allclose(weights.sampling, np.sqrt(v) / np.sqrt(v).sum())


def test_a_gain_that_noise_could_have_made_moves_nothing() -> None:
    info = Domains(("a", "b", "c"), [1] * 3)
    shares = info.importance
    told = {"grad_var": [1.0, 1.0, 1.6], "grad_sq": [1.0, 1.0, 1.6]}
    few, many = (DomainStats(count=[n] * 3, **told) for n in (20, 2000))
    policy, of = VarianceAware(lower=0.0), Run(3000)
    np.testing.assert_array_equal(run(policy, info, few, of=of).sampling, shares)
    root = np.sqrt([1.0, 1.0, 1.6])
    np.testing.assert_allclose(run(policy, info, many, of=of).sampling, root / root.sum())


@pytest.mark.parametrize(
    "importance",
    [[1.0] * 2, [1.0] * 3, [1.0] * 20, [0.95, 0.05], [0.6, 0.1, 0.1, 0.1, 0.1]],
    ids=["2", "3", "20", "2 uneven", "5 uneven"],
)
def test_where_there_is_nothing_to_gain_1_of_20_decisions_is_a_false_alarm(
    importance: list[float],
) -> None:
    """Alike domains, v² from 40 degrees of freedom each, over 2 000 decisions with a fixed seed.

    Three standard errors on either side: a rate of .05 fails 1 of 370 seeds.
    """
    K, freedom, decisions = len(importance), 40, 2000
    rng = np.random.default_rng(K)
    info = Domains([str(i) for i in range(K)], [1] * K, importance)
    # The relative variance of Gaussian gradients in one direction.
    known: dict[str, Any] = {"grad_sq_freedom": [1e9] * K, "count": [freedom] * K}
    moved = 0
    for _ in range(decisions):
        v = rng.chisquare(freedom, K) / freedom
        stats = DomainStats(grad_var=v, grad_sq=v, grad_sq_scatter=[2.0] * K, **known)
        weights = run(VarianceAware(lower=0.0), info, stats, of=Run(10**6))
        moved += not np.array_equal(weights.sampling, info.importance)
    assert abs(moved / decisions - 0.05) <= 3.0 * np.sqrt(0.05 * 0.95 / decisions)


def test_the_noise_of_alike_domains_has_one_degree_of_freedom_less_than_domains() -> None:
    """Their gain is c / (4 f K) χ² of K − 1 degrees, of which noise_gain is the 0.95 quantile."""
    for K in (2, 3, 50):
        stats = DomainStats(
            grad_var=[1.0] * K, grad_sq_scatter=[2.0] * K, grad_sq_freedom=[1e9] * K, count=[8] * K
        )
        wanted = chi2.ppf(0.95, K - 1) * 2.0 / (4.0 * 8.0 * K)
        assert noise_gain(np.full(K, 1 / K), stats, rows=None) == pytest.approx(wanted, rel=1e-6)


def test_the_quantile_of_a_gamma_distribution_is_that_of_scipy() -> None:
    for shape in np.geomspace(0.5, 5000.0, 50):
        assert gamma_quantile(shape) == pytest.approx(gammaincinv(shape, 0.95), rel=1e-9)


def test_noise_gain_knows_which_evidence_counts() -> None:
    shares = np.full(4, 0.25)
    stats = DomainStats(grad_var=[1.0] * 4, grad_sq=[1.0] * 4, count=[50.0] * 4)
    few_pairs = stats.replaced(grad_freedom=np.array([1.0, 1.0, 1.0, 1.0]))
    # With a row or more in every step pairs tell the variance, below single rows tell s².
    assert noise_gain(shares, few_pairs, rows=16) > noise_gain(shares, few_pairs, rows=2)
    assert noise_gain(shares, few_pairs, rows=2) == noise_gain(shares, stats, rows=2)
    assert noise_gain(shares, DomainStats(grad_var=[1.0] * 4), rows=16) == 0.0  # exact
    assert noise_gain(np.ones(1), DomainStats(grad_var=[1.0], count=[3.0]), rows=4) == 0.0
    unseen = stats.replaced(count=np.array([50.0, 50.0, 50.0, 0.0]))
    assert noise_gain(shares, unseen, rows=2) < noise_gain(shares, stats, rows=2)
