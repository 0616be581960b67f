"""Weights that are set and stay."""

from __future__ import annotations

import pytest

from adaptmix.policies import (
    Run,
    Static,
)
from tests.policies.cases import INFO, STATS, run


def test_static_normalises_what_it_is_given() -> None:
    policy = Static(
        sampling={"a": 2, "b": 2, "c": 2, "d": 4}, loss={"a": 1, "b": 1, "c": 1, "d": 11}
    )
    weights = run(policy, INFO, STATS)
    assert weights.sampling == pytest.approx([0.2, 0.2, 0.2, 0.4])
    assert weights.loss == pytest.approx([0.5, 0.5, 0.5, 5.5])
    with pytest.raises(ValueError, match="sampling must name exactly the domains a, b, c, d"):
        Static(sampling={"a": 1.0}).init(INFO, Run())
