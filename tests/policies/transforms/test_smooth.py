"""A convex step towards a proposal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adaptmix.policies import Smooth
from tests.policies.transforms.refining import (
    INFO,
    PI,
    PROPOSAL,
    steps,
)


def test_smooth_is_the_convex_step() -> None:
    first, second = steps(Smooth(0.25), INFO, PROPOSAL, 2)[1:]
    np.testing.assert_allclose(first.sampling, 0.75 * PI + 0.25 * PROPOSAL.sampling)
    np.testing.assert_allclose(second.loss, 0.75 * first.loss + 0.25 * PROPOSAL.loss)
    assert pytest.approx(1.0, abs=1e-15) == PI @ second.loss


def test_a_rate_outside_its_range_is_named() -> None:
    for rate in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="rate must be"):
            Smooth(rate)
