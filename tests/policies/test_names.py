"""What a policy's name stands for."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix import DomainStats
from adaptmix.policies import (
    FGLS,
    NAMED,
    Joint,
    Shrink,
    Static,
    VarianceAware,
    chain,
)
from adaptmix.policies._names import named, with_shrinkage
from tests.policies.cases import INFO, PI, STATS, run


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_class_behaves_as_its_name(name: str) -> None:
    stages = NAMED[name]
    if len(stages) == 1:
        assert with_shrinkage(stages[0]()) == named(name)
    assert with_shrinkage(Static()) == Static()  # it reads nothing, so there is nothing to shrink
    assert with_shrinkage(named(name)) == named(name)  # a chain stays as it is


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
