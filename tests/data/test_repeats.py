"""Steps that train the rows of earlier ones again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptmix import Mixture
from adaptmix.data import Plan, Repeats

SHARES = np.array([0.5, 0.5])


def drawn(
    repeats: Repeats, *, steps: int = 12, lag: int = 3, resume: int = 0
) -> list[NDArray[np.int64]]:
    """The rows of each step, of two domains of 40 rows."""
    plan = Plan(Mixture({"a": range(40), "b": range(40)}), shares=SHARES, lag=lag, seed=0)
    plan.repeats = repeats
    rows: list[NDArray[np.int64]] = []
    for drawn in plan.steps(0, steps, size=4):
        rows.append(drawn.rows)
        assert drawn.step == len(rows) - 1
        assert drawn.fresh.all() == (drawn.step % 6 < 2)
        plan.advance()
        if len(rows) == resume:
            state = plan.state_dict()
            plan = Plan(plan.mixture, shares=SHARES, lag=lag, seed=0)
            plan.load_state_dict(state)
            plan.repeats = repeats
            return rows + [step.rows for step in plan.steps(resume, steps, size=4)]
    return rows


@pytest.mark.parametrize("lag", [0, 3, 16])
def test_two_steps_are_trained_three_times_and_then_come_new_rows(lag: int) -> None:
    rows = drawn(Repeats(2, 3), lag=lag)
    for begin in (0, 6):
        for step in range(begin + 2, begin + 6):
            np.testing.assert_array_equal(rows[step], rows[begin + step % 2])
    own = np.concatenate([rows[step] for step in (0, 1, 6, 7)])
    assert len(set(own.tolist())) == 16


def test_a_run_goes_on_after_the_last_repetition() -> None:
    whole = drawn(Repeats(2, 3))
    for first, second in zip(whole, drawn(Repeats(2, 3), resume=6), strict=True):
        np.testing.assert_array_equal(first, second)
