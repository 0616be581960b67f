"""What refinements of weights promise."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr

from adaptmix import Domains, DomainStats, Weights
from adaptmix._simplex import normalise
from adaptmix.policies import Floor, Refinement, Run, Smooth, TrustRegion, WarmUp
from adaptmix.state._checkpoint import decode, encode

STATS = DomainStats(count=[1.0] * 4)
INFO = Domains(("a", "b", "c", "d"), [100, 400, 50, 250], [0.4, 0.3, 0.2, 0.1])
PI = INFO.importance
PROPOSAL = Weights([0.1, 0.2, 0.3, 0.4], normalise([3.0, 0.0, 1.0, 2.0], importance=PI), PI)

refinements = pytest.mark.parametrize(
    "stage",
    [Smooth(0.3), TrustRegion(0.01), WarmUp(3), WarmUp(3, linear=True), Floor(lower=0.15)],
    ids=repr,
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Domains, Weights]:
    """Domains and a proposal, in which domains without loss weight may go unsampled."""
    K = draw(st.integers(1, 6))
    values = st.one_of(st.just(0.0), st.floats(-12, 0).map(lambda power: float(10.0**power)))
    many = st.lists(values, min_size=K, max_size=K).filter(any)
    info = Domains(
        [f"d{i}" for i in range(K)],
        [1] * K,
        draw(st.lists(st.floats(1e-3, 1.0), min_size=K, max_size=K)),
    )
    sampling = normalise(draw(many))
    loss = np.where(sampling > 0.0, draw(many), 0.0)
    if not loss.any():
        loss = np.where(sampling > 0.0, 1.0, 0.0)
    return info, Weights(sampling, normalise(loss, importance=info.importance), info.importance)


def steps(stage: Refinement, info: Domains, proposal: Weights, updates: int) -> list[Weights]:
    """The weights after each of a number of updates with the same proposal, after the first."""
    state = stage.init(info, Run())
    made = [Weights.proportional(info.importance)]
    for _ in range(updates):
        weights, state = stage.refine(proposal, STATS, state)
        made.append(weights)
    return made


def divergences(before: Weights, after: Weights) -> list[float]:
    """KL of the shares and of π w, in nats."""
    pairs = [
        (before.sampling, after.sampling),
        (before.importance * before.loss, after.importance * after.loss),
    ]
    return [float(rel_entr(p, q).sum() - p.sum() + q.sum()) for p, q in pairs]


def line(before: Weights, proposal: Weights, part: float) -> Weights:
    """The weights part of the way from the ones to the others."""
    sampling = before.sampling + part * (proposal.sampling - before.sampling)
    loss = before.loss + part * (proposal.loss - before.loss)
    return Weights(sampling, loss, before.importance)


def same(one: Weights, other: Weights) -> bool:
    return np.array_equal(one.sampling, other.sampling) and np.array_equal(one.loss, other.loss)


@pytest.mark.parametrize("stage", [Smooth(1.0), TrustRegion(math.inf), WarmUp(0)], ids=repr)
@given(problem=problems())
def test_at_their_limits_they_change_nothing(
    stage: Refinement, problem: tuple[Domains, Weights]
) -> None:
    info, proposal = problem
    assert same(steps(stage, info, proposal, 1)[-1], proposal)


@refinements
def test_they_are_pure_and_their_state_survives_a_checkpoint(stage: Any) -> None:
    _, state = stage.refine(PROPOSAL, STATS, stage.init(INFO, Run()))
    before, proposal = copy.deepcopy(state), copy.deepcopy(PROPOSAL)
    weights, after = stage.refine(PROPOSAL, STATS, state)
    again, after_again = stage.refine(PROPOSAL, STATS, decode(encode(state)))
    assert same(again, weights)
    assert same(proposal, PROPOSAL)
    np.testing.assert_equal(after_again, after)
    np.testing.assert_equal(state, before)


@refinements
def test_a_run_that_needs_no_change_is_left_alone_exactly(stage: Any) -> None:
    info = Domains(("a", "b", "c"), [3, 3, 1], [0.3, 0.45, 0.25])
    alike = Weights.proportional(info.importance)
    for weights in steps(stage, info, alike, 5):
        assert same(weights, alike)


@pytest.mark.parametrize(
    "stage", [Smooth(0.3), TrustRegion(0.02), WarmUp(3), WarmUp(3, linear=True)], ids=repr
)
@given(problem=problems())
def test_they_arrive_at_a_proposal_that_stays(
    stage: Refinement, problem: tuple[Domains, Weights]
) -> None:
    info, proposal = problem
    last = steps(stage, info, proposal, 600)[-1]
    np.testing.assert_allclose(last.sampling, proposal.sampling, atol=1e-6)
    np.testing.assert_allclose(
        info.importance * last.loss, info.importance * proposal.loss, atol=1e-6
    )


def test_smooth_is_the_convex_step() -> None:
    first, second = steps(Smooth(0.25), INFO, PROPOSAL, 2)[1:]
    np.testing.assert_allclose(first.sampling, 0.75 * PI + 0.25 * PROPOSAL.sampling)
    np.testing.assert_allclose(second.loss, 0.75 * first.loss + 0.25 * PROPOSAL.loss)
    assert pytest.approx(1.0, abs=1e-15) == PI @ second.loss


@given(problem=problems(), power=st.floats(-12, 0.5))
def test_a_trust_region_goes_exactly_as_far_as_it_may(
    problem: tuple[Domains, Weights], power: float
) -> None:
    info, proposal = problem
    pi, limit = info.importance, 10.0**power
    made = steps(TrustRegion(limit), info, proposal, 3)
    for before, after in itertools.pairwise(made):
        whole, gone = divergences(before, proposal), divergences(before, after)
        assert max(gone) <= limit + 1e-9
        if max(whole) <= limit:
            assert same(after, proposal)
        elif max(divergences(before, line(before, proposal, 1.0 - 2.0**-20))) > limit:
            assert max(gone) == pytest.approx(limit, abs=1e-9)
        way = np.concatenate((proposal.sampling, pi * proposal.loss))
        way -= np.concatenate((before.sampling, pi * before.loss))
        moved = np.concatenate((after.sampling, pi * after.loss))
        moved -= np.concatenate((before.sampling, pi * before.loss))
        part = float(moved @ way) / max(float(way @ way), 1e-300)
        assert -1e-12 <= part <= 1.0 + 1e-12
        np.testing.assert_allclose(moved, part * way, atol=1e-12)


def test_a_trust_region_is_exact_for_tiny_limits_too() -> None:
    proposal = Weights(PROPOSAL.sampling, np.ones(4), PI)
    before, after = steps(TrustRegion(1e-10), INFO, proposal, 1)
    x = PROPOSAL.sampling / PI - 1.0
    t = math.sqrt(2e-10 / (PI @ x**2))  # KL ≈ t² Σ p x² / 2
    np.testing.assert_allclose(
        after.sampling, before.sampling + t * (PROPOSAL.sampling - PI), rtol=1e-8
    )


@pytest.mark.parametrize("limit", [5e-324, 1e-200, 1e-30])
def test_a_trust_region_hardly_moves_for_limits_below_rounding(limit: float) -> None:
    hollow = Domains(("a", "b"), [1, 1], [1.0, 1e-160])
    for info, proposal in (
        (INFO, PROPOSAL),
        (hollow, Weights([0.0, 1.0], [0.0, 1e160], hollow.importance)),
    ):
        last = steps(TrustRegion(limit), info, proposal, 3)[-1]
        np.testing.assert_allclose(last.sampling, info.importance, atol=1e-12)


def test_a_trust_region_lets_domains_come_and_go() -> None:
    info = Domains(("a", "b"), [1, 1])
    stage = TrustRegion(0.05)
    state = stage.init(info, Run())
    for loss in ([2.0, 0.0], [0.0, 2.0], [2.0, 0.0]):
        for _ in range(60):
            proposal = Weights(np.array(loss) / 2.0, loss, info.importance)
            weights, state = stage.refine(proposal, STATS, state)
        np.testing.assert_allclose(weights.loss, loss, atol=1e-9)


def test_warm_up_waits_or_goes_in_equal_steps() -> None:
    waiting = steps(WarmUp(2), INFO, PROPOSAL, 3)
    assert [same(w, PROPOSAL) for w in waiting] == [False, False, False, True]
    assert same(waiting[2], waiting[0])
    rising = steps(WarmUp(4, linear=True), INFO, PROPOSAL, 5)[1:]
    for t, weights in enumerate(rising):
        part = t / 4
        np.testing.assert_allclose(
            weights.sampling, (1 - part) * PI + part * PROPOSAL.sampling, rtol=1e-12
        )
    assert same(rising[-1], PROPOSAL)


@pytest.mark.parametrize("stage", [Smooth(0.9), TrustRegion(0.02)], ids=repr)
def test_what_fades_to_nothing_fades_as_a_whole(stage: Refinement) -> None:
    # The share is rounded to 0 before the loss weight is, and would be one that must be drawn.
    info = Domains(("a", "b"), [1, 1], [1e-3, 1.0])
    proposal = Weights([0.0, 1.0], [0.0, 1.001], info.importance)
    last = steps(stage, info, proposal, 1000)[-1]
    assert last.sampling.tolist() == [0.0, 1.0]
    assert last.loss.tolist() == [0.0, 1.001]


@given(problem=problems(), fraction=st.floats(0.0, 1.0))
def test_a_floor_is_kept_with_the_least_mixing(
    problem: tuple[Domains, Weights], fraction: float
) -> None:
    info, proposal = problem
    K = len(info)
    lower = fraction / K
    weights = steps(Floor(lower=lower), info, proposal, 1)[-1]
    least = max(lower, 1e-6 / K)
    assert (weights.sampling >= least * (1 - 1e-12)).all()
    assert weights.sampling.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.array_equal(weights.loss, proposal.loss)
    if proposal.sampling.min() >= least:
        assert same(weights, proposal)
    else:
        assert weights.sampling.min() == pytest.approx(least, rel=1e-9)


def test_bad_arguments_are_named() -> None:
    for rate in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="rate must be"):
            Smooth(rate)
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="limit must be"):
            TrustRegion(limit)
    with pytest.raises(ValueError, match="updates must be an integer >= 0; got -1"):
        WarmUp(-1)
    with pytest.raises(TypeError, match="updates must be an integer"):
        WarmUp(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lower must be in \[0, 1/K\]; got 0.4 with K=4"):
        Floor(lower=0.4).init(INFO, Run())
