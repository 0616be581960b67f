"""The fixed-lag plan: rows depend on seed and published shares, and on nothing else.

Also tests ``data/_draw.py`` and ``data/_step_rows.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adaptmix._checks import FloatArray
from adaptmix.data._plan import Plan
from adaptmix.data._step_rows import StepRows
from adaptmix.errors import LagError, StateError
from adaptmix.state import _checkpoint as checkpoint
from tests import helpers_data as helpers
from tests.helpers_data import SIGMAS, same_step, simplex

SIZES = (7, 4, 13)


def shares_after(step: int) -> FloatArray:
    """What the tests publish after a step."""
    return simplex(np.random.default_rng(step).uniform(0.1, 1.0, len(SIZES)).tolist())


def train(
    plan: Plan,
    stop: int,
    *,
    size: int = 6,
    ahead: Sequence[int] = (0,),
    every: int = 1,
    saved: dict[int, Any] | None = None,
) -> list[StepRows]:
    """Train up to ``stop`` steps, drawing each time as far ahead as ``ahead`` says in turn.

    After every ``every``-th step new shares are published; ``saved`` gets the state after each.
    """
    start = plan.completed
    source = plan.steps(start, stop, size=size)
    drawn: list[StepRows] = []
    for step in range(start, stop):
        wanted = min(stop, step + 1 + ahead[step % len(ahead)]) - start
        while len(drawn) < wanted:
            drawn.append(next(source))
        plan.advance()
        if (step + 1) % every == 0:
            plan.schedule.publish(shares_after(step))
        if saved is not None:
            saved[step + 1] = checkpoint.encode(plan.state_dict())
    return drawn


def same(left: list[StepRows], right: list[StepRows]) -> bool:
    return len(left) == len(right) and all(map(same_step, left, right))


@settings(max_examples=40)
@given(
    lag=st.integers(0, 4), ahead=st.lists(st.integers(0, 4), min_size=1, max_size=5), data=st.data()
)
def test_rows_do_not_depend_on_when_they_are_drawn(
    lag: int, ahead: list[int], data: st.DataObject
) -> None:
    every, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 5))
    ahead = [min(steps, lag) for steps in ahead]
    expected = train(helpers.plan(SIZES, lag=lag, seed=seed), 15, every=every)
    drawn = train(helpers.plan(SIZES, lag=lag, seed=seed), 15, every=every, ahead=ahead)
    assert same(drawn, expected)


def test_seeds_choose_the_rows() -> None:
    runs = [train(helpers.plan(SIZES, seed=seed), 5) for seed in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("lag", [0, 1, 4])
def test_a_step_is_drawn_with_the_shares_published_lag_steps_before(lag: int, every: int) -> None:
    # One row for three domains: the draw carries expected shares, that is, those in force.
    plan = helpers.plan(SIZES, lag=lag)
    drawn = train(plan, 14, size=1, ahead=[lag, 0, lag // 2], every=every)
    for t, step in enumerate(drawn):
        published = [s for s in range(t - lag) if (s + 1) % every == 0]
        expected = shares_after(published[-1]) if published else plan.mixture.importance
        assert step.domain_shares.tolist() == expected.tolist(), t


def test_running_ahead_of_the_lag_is_an_error() -> None:
    plan = helpers.plan(SIZES, lag=1)
    source = plan.steps(0, 5, size=4)
    next(source)
    next(source)
    with pytest.raises(
        LagError, match=r"^lag must be .*got lag=1 when step 2 was .*step 0 was nex"
    ):
        next(source)
    plan.advance()
    assert plan.schedule.shares_at(2).tolist() == plan.mixture.importance.tolist()
    with pytest.raises(LagError, match=r"step 3 was drawn and step 1 was next"):
        plan.schedule.shares_at(3)


def test_rows_belong_to_their_domains() -> None:
    plan = helpers.plan(SIZES)
    for step in train(plan, 10):
        assert step.rows.dtype == step.domains.dtype == np.int64
        assert np.array_equal(plan.mixture.domain_of(step.rows), step.domains)


def test_a_domain_is_used_up_before_a_row_comes_again() -> None:
    """At any time, the rows of a domain have been drawn equally often, or once more."""
    plan = helpers.plan(SIZES)
    times: NDArray[np.int64] = np.zeros(sum(SIZES), dtype=np.int64)
    domains = plan.mixture.domain_of(np.arange(sum(SIZES)))
    for step in train(plan, 40):
        np.add.at(times, step.rows, 1)
        for domain in range(len(SIZES)):
            own = times[domains == domain]
            assert own.max() - own.min() <= 1
    assert times.min() >= 5


def test_fresh_marks_the_first_time_a_row_is_drawn() -> None:
    known: set[int] = set()
    flags: Counter[int] = Counter()
    for step in train(helpers.plan(SIZES), 30):
        assert {row for row, new in zip(step.rows, step.fresh, strict=True) if new} == (
            set(step.rows.tolist()) - known
        )
        known.update(step.rows.tolist())
        flags.update(step.rows[step.fresh].tolist())
    assert flags == Counter(range(sum(SIZES)))


def test_every_epoch_has_an_order_of_its_own() -> None:
    steps = list(helpers.plan([40], lag=8).steps(0, 8, size=10))
    epochs = [[frozenset(s.rows.tolist()) for s in steps[i : i + 4]] for i in (0, 4)]
    assert frozenset.union(*epochs[0]) == frozenset.union(*epochs[1]) == set(range(40))
    assert epochs[0] != epochs[1]
    assert epochs[0][0] != frozenset(range(10))


def test_rows_of_a_step_are_shuffled() -> None:
    steps = list(helpers.plan([50, 50], lag=20).steps(0, 20, size=10))
    assert any(step.domains.tolist() != sorted(step.domains.tolist()) for step in steps)
    first = np.array([step.domains[0] for step in steps])
    assert 0 < first.sum() < 20


@pytest.mark.parametrize(
    ("shares", "sure"),
    [
        ([0.5, 0.5], [True, True]),  # 2.5 rows each: sure of two
        ([0.8, 0.2], [True, True]),  # 4 and 1: sure of one
        ([1.0 - 0.6 / 3, 0.6 / 3], [True, True]),  # the same, up to rounding error
        ([0.9, 0.1], [True, False]),  # half a row: not sure of one, and the other is none the worse
        ([1.0, 0.0], [True, False]),  # what is never drawn divides nothing
        ([0.3, 0.3, 0.15, 0.15, 0.1], [True, True, False, False, False]),
    ],
)
def test_each_domain_divides_by_its_realised_share_where_it_is_sure_of_a_row(
    shares: list[float], sure: list[bool]
) -> None:
    K = len(shares)
    for step in helpers.plan([30] * K, lag=20, shares=shares).steps(0, 20, size=5):
        realised = np.bincount(step.domains, minlength=K) / 5
        assert step.domain_shares.tolist() == np.where(sure, realised, shares).tolist()
        assert step.row_shares.tolist() == realised.tolist()


def test_every_pair_of_domains_that_may_be_absent_meets_in_some_step() -> None:
    """In one fixed order, neighbours of half a row each would never be drawn together."""
    met = np.zeros((6, 6), dtype=bool)
    for step in helpers.plan([50] * 6, lag=200, shares=[1 / 6] * 6).steps(0, 200, size=3):
        met[np.ix_(step.domains, step.domains)] = True
    assert met.all()


def test_counts_have_their_expectation() -> None:
    # Systematic rounding leaves a variance of f (1 − f) per step, f the fractional part. False
    # alarm: 7e-6 per domain.
    shares, size, steps = np.array([0.07, 0.33, 0.6]), 5, 1000
    plan = helpers.plan([50, 50, 50], lag=steps, shares=shares.tolist())
    counts = np.zeros(3)
    for step in plan.steps(0, steps, size=size):
        counts += np.bincount(step.domains, minlength=3)
    expected = size * shares
    fractions = expected - np.floor(expected + 1e-9)
    deviation = np.sqrt(steps * fractions * (1.0 - fractions))
    assert (np.abs(counts - steps * expected) <= SIGMAS * deviation + 1e-6).all()


@settings(max_examples=25)
@given(
    lag=st.integers(0, 3), stop=st.integers(1, 11), every=st.integers(1, 3), size=st.integers(1, 9)
)
def test_a_restored_plan_goes_on_alike(lag: int, stop: int, every: int, size: int) -> None:
    options: dict[str, Any] = {"size": size, "ahead": [lag, 0], "every": every}
    saved: dict[int, Any] = {}
    whole = train(helpers.plan(SIZES, lag=lag), 12, saved=saved, **options)
    restored = helpers.plan(SIZES, lag=lag)
    restored.load_state_dict(checkpoint.decode(saved[stop]))
    assert restored.completed == stop
    assert same(train(restored, 12, **options), whole[stop:])


def test_the_history_stays_short() -> None:
    plan = helpers.plan(SIZES, lag=3)
    train(plan, 50, ahead=[3])
    assert len(plan.state_dict()["history_steps"]) <= 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completed": -1}, r"completed must be an integer in \[0, inf\]; got -1"),
        ({"drawn": [1.0]}, r"drawn must be an array of int64; got list"),
        ({"drawn": np.zeros(1, np.int64)}, r"drawn must have shape \(.*\); got \(1,\)"),
        ({"history_steps": np.array([9])}, r"history_steps must increase from at most 0"),
        ({"history_shares": np.full((1, len(SIZES)), 0.9)}, r"history_shares must have 1 rows"),
        ({"shares": 1}, r"'shares' must not be in the state of plan"),
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, Any], message: str) -> None:
    plan = helpers.plan(SIZES)
    with pytest.raises(StateError, match=f"^(plan.)?{message}"):
        plan.load_state_dict({**plan.state_dict(), **change})


@pytest.mark.parametrize(("option", "value"), [("lag", -1), ("seed", -1)])
def test_options_have_their_range(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{option} must be an integer >= 0; got -1\."):
        helpers.plan(SIZES, **{option: value})  # type: ignore[arg-type]
