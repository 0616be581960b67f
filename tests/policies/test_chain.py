"""How stages are put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix import Domains, DomainStats, Weights
from adaptmix.policies import (
    FGLS,
    Chain,
    Floor,
    Policy,
    Preparation,
    Refinement,
    Shrink,
    Smooth,
    TrustRegion,
    VarianceAware,
    WarmUp,
    bind,
    chain,
)
from adaptmix.state._checkpoint import decode, encode

INFO = Domains(("a", "b", "c"), [100, 400, 50])
STATS = DomainStats(
    count=[5, 50, 2],
    seen=[8, 90, 3],
    noise=[1.0, 4.0, 0.5],
    grad_var=[1.0, 9.0, 4.0],
)


def test_stages_run_in_order_on_prepared_statistics() -> None:
    policy = chain(Shrink(), FGLS(), VarianceAware(lower=0.0), Smooth(0.5))
    weights, state = policy.update(STATS, policy.init(INFO))
    shrunk, _ = Shrink().prepare(STATS, {})
    fgls, _ = FGLS().update(shrunk, FGLS().init(INFO))
    va = VarianceAware(lower=0.0)
    refined, _ = va.refine(fgls, shrunk, va.init(INFO))
    expected, _ = Smooth(0.5).refine(refined, shrunk, Smooth(0.5).init(INFO))
    np.testing.assert_array_equal(weights.sampling, expected.sampling)
    np.testing.assert_array_equal(weights.loss, expected.loss)
    assert len(state) == 4


def test_a_chain_is_a_policy_and_may_be_a_stage() -> None:
    inner = chain(Shrink(), VarianceAware())
    assert isinstance(inner, Policy)
    assert not isinstance(inner, Refinement)
    outer = chain(inner, Smooth(1.0))
    weights, state = outer.update(STATS, outer.init(INFO))
    alone, _ = inner.update(STATS, inner.init(INFO))
    np.testing.assert_array_equal(weights.sampling, alone.sampling)
    np.testing.assert_equal(decode(encode(state)), state)


def test_a_chain_reads_what_its_stages_read() -> None:
    policy = chain(Shrink(), FGLS(), VarianceAware(), Smooth(), Floor())
    assert policy.requires == {"noise", "grad_sq"}


def test_bind_reaches_every_stage() -> None:
    policy = bind(chain(Shrink(), VarianceAware(), Floor()), batch_size=32, horizon=10)
    assert isinstance(policy, Chain)
    assert policy.then == (Floor(),)
    assert policy.first == VarianceAware(batch_size=32)
    assert policy.before == (Shrink(),)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), r"stages must hold a policy, such as VarianceAware\(\); got \(\)"),
        ((Shrink(),), r"stages must hold a policy.*got \(Shrink\("),
        ((Smooth(), VarianceAware()), r"got Smooth\(rate=0.5\) before the policy"),
        ((VarianceAware(), Shrink()), r"got Shrink\(.*\) after the policy"),
        ((VarianceAware(), FGLS()), r"got FGLS\(.*\) after the policy"),
        (("fgls",), r"got 'fgls' before the policy"),
        ((FGLS(), VarianceAware), r"objects; got <class .*>. Write VarianceAware\(\)"),
        ((VarianceAware,), r"objects; got <class .*>. Write VarianceAware\(\)"),
    ],
)
def test_misplaced_stages_are_named(stages: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        chain(*stages)


def test_transforms_are_what_they_say() -> None:
    assert isinstance(Shrink(), Preparation)
    for stage in (Smooth(), TrustRegion(), WarmUp(1), Floor()):
        assert isinstance(stage, Refinement)
        assert not isinstance(stage, (Policy, Preparation))


def test_what_a_user_writes_can_be_a_stage() -> None:
    class Doubled:
        requires = frozenset({"noise"})

        def init(self, domains: Domains) -> dict[str, Any]:
            return {"updates": 0}

        def prepare(
            self, stats: DomainStats, state: dict[str, Any]
        ) -> tuple[DomainStats, dict[str, Any]]:
            return DomainStats(noise=2.0 * stats.noise), {"updates": state["updates"] + 1}

    class Reversed:
        requires = frozenset[str]()

        def init(self, domains: Domains) -> None:
            return None

        def refine(self, weights: Weights, stats: DomainStats, state: None) -> tuple[Weights, None]:
            return Weights(weights.sampling[::-1], weights.loss, weights.importance), None

    policy = chain(Doubled(), FGLS(), Reversed())
    weights, state = policy.update(STATS, policy.init(INFO))
    assert state[0] == {"updates": 1}
    assert weights.sampling.tolist() == INFO.importance[::-1].tolist()
