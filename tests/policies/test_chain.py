"""How stages are put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix import Domains, DomainStats, Weights
from adaptmix.policies import (
    FGLS,
    Floor,
    Policy,
    Preparation,
    Refinement,
    Run,
    Shrink,
    Smooth,
    Static,
    TrustRegion,
    VarianceAware,
    WarmUp,
    chain,
)
from adaptmix.state._checkpoint import decode, encode
from tests.policies.cases import begin

INFO = Domains(("a", "b", "c"), [100, 400, 50])
STATS = DomainStats(
    count=[5, 50, 2],
    seen=[8, 90, 3],
    noise=[1.0, 4.0, 0.5],
    grad_var=[1.0, 9.0, 4.0],
)


def test_stages_run_in_order_on_prepared_statistics() -> None:
    policy = chain(Shrink(), FGLS(), VarianceAware(lower=0.0), Smooth(0.5))
    weights, state = policy.update(STATS, begin(policy, INFO))
    shrunk, _ = Shrink().prepare(STATS, {})
    fgls, _ = FGLS().update(shrunk, FGLS().init(INFO, Run()))
    va = VarianceAware(lower=0.0)
    refined, _ = va.refine(fgls, shrunk, va.init(INFO, Run()))
    expected, _ = Smooth(0.5).refine(refined, shrunk, Smooth(0.5).init(INFO, Run()))
    np.testing.assert_array_equal(weights.sampling, expected.sampling)
    np.testing.assert_array_equal(weights.loss, expected.loss)
    assert len(state) == 4


def test_a_chain_is_a_policy_and_may_be_a_stage() -> None:
    inner = chain(Shrink(), VarianceAware())
    assert isinstance(inner, Policy)
    assert not isinstance(inner, Refinement)
    outer = chain(inner, Smooth(1.0))
    weights, state = outer.update(STATS, begin(outer, INFO))
    alone, _ = inner.update(STATS, begin(inner, INFO))
    np.testing.assert_array_equal(weights.sampling, alone.sampling)
    np.testing.assert_equal(decode(encode(state)), state)


def test_a_chain_reads_what_its_stages_read() -> None:
    policy = chain(Shrink(), FGLS(), VarianceAware(), Smooth(), Floor())
    assert policy.requires == {"noise", "grad_sq"}


def test_a_chain_starts_with_the_weights_of_its_policy_and_its_stages_go_on_from_them() -> None:
    start = Static(sampling={"a": 1.0, "b": 3.0, "c": 4.0})
    policy = chain(start, Smooth(0.5), WarmUp(1), Floor())
    weights, state = policy.init(INFO, Run(32, 10))
    np.testing.assert_allclose(weights.sampling, [1 / 8, 3 / 8, 4 / 8])
    for _ in range(3):
        again, state = policy.update(STATS, state)
        np.testing.assert_array_equal(again.sampling, weights.sampling)
    other = chain(FGLS(), VarianceAware()).init(INFO, Run(32, 10))
    np.testing.assert_array_equal(other.weights.sampling, INFO.importance)


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

        def init(self, domains: Domains, run: Run) -> dict[str, Any]:
            return {"updates": 0}

        def prepare(
            self, stats: DomainStats, state: dict[str, Any]
        ) -> tuple[DomainStats, dict[str, Any]]:
            return DomainStats(noise=2.0 * stats.noise), {"updates": state["updates"] + 1}

    class Reversed:
        requires = frozenset[str]()

        def init(self, domains: Domains, run: Run) -> None:
            return None

        def refine(self, weights: Weights, stats: DomainStats, state: None) -> tuple[Weights, None]:
            return Weights(weights.sampling[::-1], weights.loss, weights.importance), None

    policy = chain(Doubled(), FGLS(), Reversed())
    weights, state = policy.update(STATS, begin(policy, INFO))
    assert state[0] == {"updates": 1}
    assert weights.sampling.tolist() == INFO.importance[::-1].tolist()
