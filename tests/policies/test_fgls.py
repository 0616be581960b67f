"""FGLS against its formula written out."""

from __future__ import annotations

import numpy as np

from adaptmix.policies import (
    FGLS,
)
from tests.policies.cases import INFO, PI, STATS, run


def test_fgls_is_inverse_noise() -> None:
    weights = run(FGLS(), INFO, STATS)
    expected = 1.0 / STATS.noise
    np.testing.assert_allclose(weights.loss, expected / (PI @ expected))
    sized = run(FGLS(use_sizes=True), INFO, STATS).loss
    expected = INFO.sizes / (PI * STATS.noise)
    np.testing.assert_allclose(sized, expected / (PI @ expected))
