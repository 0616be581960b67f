"""The rows of a step keep together in any order, and with held-out ones among them."""

from __future__ import annotations

import numpy as np

from adaptmix.data._holdout import HeldRows
from adaptmix.data._step_rows import StepRows

TRAINED = StepRows(
    step=3,
    rows=np.array([10, 11, 12]),
    domains=np.array([0, 1, 1]),
    fresh=np.array([True, False, True]),
    domain_shares=np.array([0.25, 0.5]),
    row_shares=np.array([0.25, 0.5]),
    spent=np.array([False, True]),
)
RIDING = HeldRows(np.array([99]), np.array([1]))
PLACES = np.array([False, True, False, False])


def test_held_out_rows_take_their_places_and_are_no_fresh_ones() -> None:
    step = TRAINED.with_held(RIDING, PLACES)
    assert step.rows.tolist() == [10, 99, 11, 12]
    assert step.domains.tolist() == [0, 1, 1, 1]
    assert step.fresh.tolist() == [True, False, False, True]
    assert step.held is not None
    assert step.held.tolist() == PLACES.tolist()
    # What multipliers divide by is not theirs; the realised shares are of all rows.
    assert step.domain_shares.tolist() == [0.25, 0.5]
    assert step.row_shares.tolist() == [0.25, 0.75]
    assert TRAINED.with_held(HeldRows(np.arange(0), np.arange(0)), None) is TRAINED


def test_rows_move_with_all_that_belongs_to_them() -> None:
    order = np.array([3, 1, 0, 2])
    step = TRAINED.with_held(RIDING, PLACES).in_order(order)
    assert step.rows.tolist() == [12, 99, 10, 11]
    assert step.domains.tolist() == [1, 1, 0, 1]
    assert step.fresh.tolist() == [True, False, True, False]
    assert step.held is not None
    assert step.held.tolist() == [False, True, False, False]
    assert step.spent is TRAINED.spent
    assert TRAINED.in_order(np.array([2, 0, 1])).held is None
