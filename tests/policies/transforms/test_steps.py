"""What all stages promise that go from the weights last returned towards a proposal."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from adaptmix import Domains, Weights
from adaptmix.policies import Floor, Refinement, Run, Smooth, TrustRegion, WarmUp
from adaptmix.state._checkpoint import decode, encode
from tests.policies.transforms.refining import (
    INFO,
    PROPOSAL,
    STATS,
    problems,
    same,
    steps,
)

refinements = pytest.mark.parametrize(
    "stage",
    [Smooth(0.3), TrustRegion(0.01), WarmUp(3), WarmUp(3, linear=True), Floor(lower=0.15)],
    ids=repr,
)


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


@pytest.mark.parametrize("stage", [Smooth(0.9), TrustRegion(0.02)], ids=repr)
def test_what_fades_to_nothing_fades_as_a_whole(stage: Refinement) -> None:
    # The share is rounded to 0 before the loss weight is, and would be one that must be drawn.
    info = Domains(("a", "b"), [1, 1], [1e-3, 1.0])
    proposal = Weights([0.0, 1.0], [0.0, 1.001], info.importance)
    last = steps(stage, info, proposal, 1000)[-1]
    assert last.sampling.tolist() == [0.0, 1.0]
    assert last.loss.tolist() == [0.0, 1.001]
