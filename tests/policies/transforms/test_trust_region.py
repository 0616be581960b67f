"""The longest step that a divergence allows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix import Domains, Weights
from adaptmix.policies import Run, TrustRegion
from tests.policies.transforms.refining import (
    INFO,
    PI,
    PROPOSAL,
    STATS,
    divergences,
    line,
    problems,
    same,
    steps,
)


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


def test_a_limit_that_is_not_positive_is_named() -> None:
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="limit must be"):
            TrustRegion(limit)
