"""The schedule: shares with a fixed lag, and counts per domain, with no dataset in sight."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix.data._schedule import LaggedShares
from adaptmix.errors import LagError, StateError
from tests.helpers_data import SIGMAS

FIRST, THEN = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.1, 0.8])


@pytest.mark.parametrize("counts", ["stratified", "multinomial"])
def test_counts_have_the_mean_of_the_shares(counts: str) -> None:
    steps, size = 2000, 7
    schedule = LaggedShares(FIRST, lag=steps, seed=3, counts=counts)
    found = schedule.count(range(steps), np.tile(FIRST, (steps, 1)), size=size, held=[0] * steps)
    drawn = found.counts
    assert (drawn.sum(1) == size).all()
    error = np.sqrt(size * FIRST * (1.0 - FIRST) / steps)  # multinomial; stratified has less
    assert (np.abs(drawn.mean(0) - size * FIRST) < SIGMAS * error).all()
    if counts == "stratified":
        assert (np.abs(drawn - size * FIRST) < 1.0).all()


def test_shares_take_effect_after_the_lag() -> None:
    schedule = LaggedShares(FIRST, lag=2, seed=0, counts="stratified")
    schedule.advance()
    schedule.publish(THEN)
    assert [schedule.shares_at(step) is THEN for step in (1, 2, 3)] == [False, False, True]
    with pytest.raises(LagError, match="step 4 was drawn and step 1 was next"):
        schedule.shares_at(4)
    schedule.publish(FIRST, between_steps=False)  # the loader may have drawn step 3
    schedule.advance()
    assert schedule.shares_at(3) is THEN
    assert schedule.shares_at(4) is FIRST


@pytest.mark.parametrize("counts", ["stratified", "multinomial"])
def test_a_step_is_the_same_whenever_and_with_whatever_others_it_is_counted(counts: str) -> None:
    schedule = LaggedShares(FIRST, lag=5, seed=1, counts=counts)
    shares, held = np.array([FIRST, THEN] * 3), [0, 2, 0, 0, 1, 0]
    once = schedule.count(range(6), shares, size=9, held=held)
    again = LaggedShares(FIRST, lag=5, seed=1, counts=counts)
    again.load_state_dict(schedule.state_dict())
    for step in reversed(range(6)):
        other = again.count([step], shares[[step]], size=9, held=held[step : step + 1])
        assert np.array_equal(other.counts[0], once.counts[step])
        assert np.array_equal(other.domain_shares[0], once.domain_shares[step])
        assert np.array_equal(other.orders[0], once.orders[step])
        assert sorted(other.orders[0]) == list(range(9 - held[step]))
        apart = other.held[0]
        assert (apart is None) == (held[step] == 0)
        assert apart is None or (apart.sum(), apart.size) == (held[step], 9)
        assert np.array_equal(apart, once.held[step])  # type: ignore[arg-type]


def test_a_damaged_position_is_named_and_changes_nothing() -> None:
    schedule = LaggedShares(FIRST, lag=1, seed=0, counts="stratified")
    state = schedule.state_dict()
    with pytest.raises(StateError, match=r"^schedule\.history_shares must have 1 rows that sum"):
        schedule.load_state_dict({**state, "history_shares": np.full((1, 3), 0.5)})
    with pytest.raises(StateError, match=r"^schedule\.history_steps must increase"):
        schedule.load_state_dict({**state, "history_steps": np.array([5])})
    assert schedule.completed == 0
    assert schedule.shares_at(0) is FIRST
