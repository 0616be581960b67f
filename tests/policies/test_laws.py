"""Laws that every policy obeys."""

from __future__ import annotations

import copy
import itertools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix import Domains, DomainStats
from adaptmix.policies import Policy
from adaptmix.state._checkpoint import decode, encode
from tests.policies.cases import (
    FIELDS,
    HARMLESS,
    POLICIES,
    begin,
    domains,
    reorder,
    run,
    statistics,
)

# Shrinkage moves all estimates when one does, and the joint program trades shares for loss weight.
BY_NOISE = ["fgls", "fgls_sizes", "joint_ignoring", "fgls+variance_aware"]
BY_VARIANCE = ["variance_aware", "fgls+variance_aware", "erma+variance_aware", "joint_ignoring"]

every_policy = pytest.mark.parametrize("name", POLICIES)


@every_policy
@given(data=st.data())
def test_weights_are_finite_on_the_simplex_and_normalised(name: str, data: st.DataObject) -> None:
    info = data.draw(domains())
    weights = run(POLICIES[name](), info, data.draw(statistics(len(info))), updates=3)
    for vector in (weights.sampling, weights.loss, weights.multipliers):
        assert np.isfinite(vector).all()
        assert (vector >= 0.0).all()
    assert weights.sampling.sum() == pytest.approx(1.0, abs=1e-9)
    assert info.importance @ weights.loss == pytest.approx(1.0, abs=1e-9)
    assert weights.importance.tolist() == info.importance.tolist()


@pytest.mark.parametrize("name", [name for name in POLICIES if "va" in name or "joint" in name])
@given(data=st.data())
def test_floors_are_kept(name: str, data: st.DataObject) -> None:
    info = data.draw(domains())
    lower = data.draw(st.floats(0.0, 1.0 / len(info)))
    policy = _with_floor(POLICIES[name](), lower)
    weights = run(policy, info, data.draw(statistics(len(info))))
    assert (weights.sampling >= lower * (1 - 1e-9)).all()


def _with_floor(policy: Any, lower: float) -> Any:
    """The same policy, or every stage of the same chain, with another floor."""
    if isinstance(policy, tuple):
        return tuple(_with_floor(stage, lower) for stage in policy)
    changes = {
        field.name: lower
        if field.name == "lower"
        else _with_floor(getattr(policy, field.name), lower)
        for field in fields(policy)
        if field.name in ("lower", "first", "then")
    }
    return replace(policy, **changes)


@every_policy
@given(data=st.data())
def test_the_order_of_domains_does_not_matter(name: str, data: st.DataObject) -> None:
    info = data.draw(domains())
    stats = data.draw(statistics(len(info)))
    order = np.array(data.draw(st.permutations(range(len(info)))))
    moved = Domains([info.names[i] for i in order], info.sizes[order], info.importance[order])
    weights = run(POLICIES[name](), info, stats)
    again = run(POLICIES[name](), moved, reorder(stats, order))
    np.testing.assert_allclose(again.sampling, weights.sampling[order], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(again.loss, weights.loss[order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in POLICIES if "erma" not in name])
@given(data=st.data(), power=st.integers(-40, 40))
def test_units_of_loss_and_gradient_do_not_matter(
    name: str, data: st.DataObject, power: int
) -> None:
    # Powers of two, so that scaling itself rounds nothing. ERMA's bias term weighs losses against
    # sizes, so its weights are scale-free too, but only with variances in squared units: below.
    info = data.draw(domains())
    stats = data.draw(statistics(len(info)))
    scale = 2.0**power
    scaled = DomainStats(
        count=stats.count,
        seen=stats.seen,
        loss_mean=stats.loss_mean * scale,
        noise=stats.noise * scale,
        grad_var=stats.grad_var / scale,
        grad_sq=stats.grad_sq / scale,
    )
    weights, again = (run(POLICIES[name](), info, s) for s in (stats, scaled))
    if name.startswith("joint") and name.endswith(
        "_sizes"
    ):  # the two units meet in its curvature, so they move together
        scaled = DomainStats(
            count=stats.count,
            seen=stats.seen,
            loss_mean=stats.loss_mean * scale,
            noise=stats.noise * scale,
            grad_var=stats.grad_var * scale,
            grad_sq=stats.grad_sq * scale,
        )
        again = run(POLICIES[name](), info, scaled)
    np.testing.assert_allclose(again.sampling, weights.sampling, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(again.loss, weights.loss, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in POLICIES if name.startswith("erma")])
@given(data=st.data(), power=st.integers(-20, 20))
def test_units_of_losses_do_not_matter_to_erma(name: str, data: st.DataObject, power: int) -> None:
    info = data.draw(domains())
    stats = data.draw(statistics(len(info)))
    scale = 2.0**power
    scaled = DomainStats(
        count=stats.count,
        seen=stats.seen,
        loss_mean=stats.loss_mean * scale,
        loss_var=stats.loss_var * scale**2,
        grad_var=stats.grad_var,
    )
    weights, again = (run(POLICIES[name](), info, s) for s in (stats, scaled))
    np.testing.assert_allclose(again.loss, weights.loss, rtol=1e-9, atol=1e-12)


@every_policy
@given(data=st.data())
def test_updates_are_pure_and_their_state_survives_a_checkpoint(
    name: str, data: st.DataObject
) -> None:
    info = data.draw(domains())
    stats = data.draw(statistics(len(info)))
    policy = POLICIES[name]()
    first, state = policy.update(stats, begin(policy, info))
    before = copy.deepcopy(state)
    weights, after = policy.update(stats, state)
    again, after_again = policy.update(stats, decode(encode(state)))
    np.testing.assert_array_equal(again.sampling, weights.sampling)
    np.testing.assert_array_equal(again.loss, weights.loss)
    np.testing.assert_equal(after_again, after)
    np.testing.assert_equal(state, before)
    assert first.loss.shape == weights.loss.shape


@pytest.mark.parametrize("name", HARMLESS)
@given(data=st.data())
def test_equal_domains_are_left_alone(name: str, data: st.DataObject) -> None:
    info = data.draw(domains())
    one = data.draw(statistics(1))
    values = {f: np.repeat(getattr(one, f), len(info)) for f in ("loss_mean", "loss_var", "noise")}
    stats = DomainStats(grad_var=np.repeat(one.grad_var, len(info)), **values)
    policy = POLICIES[name]()
    policy = _with_floor(policy, 0.0) if "va" in name or "joint" in name else policy
    weights = run(policy, info, stats, updates=5)
    np.testing.assert_allclose(weights.loss, 1.0, rtol=1e-9)
    np.testing.assert_allclose(weights.sampling, info.importance, rtol=1e-9)


@every_policy
@given(data=st.data())
def test_one_domain_has_nothing_to_share(name: str, data: st.DataObject) -> None:
    info = data.draw(domains(max_size=1))
    weights = run(POLICIES[name](), info, data.draw(statistics(1)), updates=3)
    assert weights.sampling == pytest.approx([1.0])
    assert weights.loss == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("statistic", "weight", "sign", "name"),
    [
        *itertools.product(["noise"], ["loss"], [-1.0], BY_NOISE),
        *itertools.product(["grad_var"], ["sampling"], [1.0], BY_VARIANCE),
    ],
)
@given(data=st.data(), factor=st.floats(1.5, 100.0))
def test_more_noise_never_earns_loss_weight_and_more_gradient_variance_never_costs_shares(
    statistic: str, weight: str, sign: float, name: str, data: st.DataObject, factor: float
) -> None:
    info = data.draw(domains(min_size=2))
    drawn = data.draw(statistics(len(info)))
    known = {f: np.where(np.isnan(v := getattr(drawn, f)), 1.0, v) for f in FIELDS}
    louder = {**known, statistic: known[statistic] * np.where(np.arange(len(info)), 1.0, factor)}
    before, after = (
        getattr(
            run(POLICIES[name](), info, DomainStats(count=drawn.count, seen=drawn.seen, **f)),
            weight,
        )
        for f in (known, louder)
    )
    assert sign * (after[0] - before[0]) >= -1e-9 * before[0]


@every_policy
def test_an_unseen_domain_gets_the_mean_of_the_others(name: str) -> None:
    info = Domains(("a", "b", "c"), [10, 10, 10])
    known = {f: [1.0, 3.0, np.nan] for f in ("loss_mean", "loss_var", "noise", "grad_var")}
    filled = {f: [1.0, 3.0, 2.0] for f in known}
    count = [5.0, 5.0, 0.0]
    policy: Policy = POLICIES[name]()
    weights = run(policy, info, DomainStats(count=count, seen=count, **known))
    expected = run(policy, info, DomainStats(count=count, seen=count, **filled))
    np.testing.assert_allclose(weights.sampling, expected.sampling)
    np.testing.assert_allclose(weights.loss, expected.loss)
