"""Weights that wait for the first updates."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix.policies import WarmUp
from tests.policies.transforms.refining import (
    INFO,
    PI,
    PROPOSAL,
    same,
    steps,
)


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


def test_bad_updates_are_named() -> None:
    with pytest.raises(ValueError, match="updates must be an integer >= 0; got -1"):
        WarmUp(-1)
    with pytest.raises(TypeError, match="updates must be an integer"):
        WarmUp(1.5)  # type: ignore[arg-type]
