"""The least mixing with equal shares that keeps a floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix import Domains, Weights
from adaptmix.policies import Floor, Run
from tests.policies.transforms.refining import (
    INFO,
    problems,
    same,
    steps,
)


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


def test_a_floor_that_domains_cannot_keep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lower must be in \[0, 1/K\]; got 0.4 with K=4"):
        Floor(lower=0.4).init(INFO, Run())
