"""Which rows are held out, and when they ride in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix._checks import FloatArray
from adaptmix.data._holdout import Holdout, holdout_sizes
from adaptmix.data._layout import Layout
from adaptmix.data._plan import Plan
from adaptmix.data._sampler import PlanSampler
from tests.helpers_data import mixture, same_step

SIZES = (40, 7, 200)


def holdout(*sizes: int, held: Any = 0.25, every: int = 2, half_life: float = 50.0) -> Holdout:
    mix = mixture(*sizes)
    number = holdout_sizes(held, mix.sizes, needed=True)
    return Holdout(mix, number, seed=1, every=every, half_life=half_life)


def plan(held: Holdout, *, counts: str = "stratified", shares: FloatArray | None = None) -> Plan:
    training = held.training
    p = training.importance if shares is None else shares
    return Plan(training, shares=p, lag=1000, seed=3, counts=counts, holdout=held)


@pytest.mark.parametrize(
    ("given", "needed", "sizes", "expected"),
    [
        ("auto", True, (3, 40, 100, 5_000, 1_000_000), (0, 10, 16, 100, 2_000)),
        ("auto", False, (40, 100), (0, 0)),
        (None, True, (40, 100), (0, 0)),
        (0.1, False, (3, 8, 100), (0, 1, 10)),
        (30, False, (40, 1000), (10, 30)),
    ],
)
def test_a_slice_of_each_domain_is_held_out(
    given: Any, needed: bool, sizes: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert tuple(holdout_sizes(given, np.array(sizes), needed=needed)) == expected


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("yes", TypeError, "holdout must be \"auto\", a share .* or None; got 'yes'"),
        (True, TypeError, "got True"),
        (0, ValueError, "holdout must be an integer >= 1; got 0"),
        (0.3, ValueError, r"holdout must be a share in \(0, 0.25\] .*; got 0.3"),
        (-0.1, ValueError, "got -0.1"),
    ],
)
def test_other_holdouts_are_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        holdout_sizes(given, np.array([100]), needed=True)


def test_held_out_rows_are_never_trained_on_and_all_others_are() -> None:
    held = holdout(*SIZES)
    trained: set[int] = set()
    ridden: set[int] = set()
    for step in plan(held).steps(0, 120, size=32):
        apart = np.zeros(32, dtype=bool) if step.held is None else step.held
        trained |= set(step.rows[~apart].tolist())
        ridden |= set(step.rows[apart].tolist())
        assert not step.fresh[apart].any()
        np.testing.assert_array_equal(held.training.domain_of(step.rows), step.domains)
    assert not trained & ridden
    assert len(trained) == sum(SIZES) - held.sizes.sum() == held.training.sizes.sum()
    by_domain = np.bincount(held.training.domain_of(sorted(ridden)), minlength=3)
    np.testing.assert_array_equal(by_domain, np.minimum(held.sizes, 40))


@pytest.mark.parametrize("counts", ["stratified", "multinomial"])
def test_the_other_rows_are_shared_out_as_if_they_were_the_whole_batch(counts: str) -> None:
    held = holdout(*SIZES, every=1)
    shares = np.array([0.2, 0.01, 0.79])
    for step in plan(held, counts=counts, shares=shares).steps(0, 40, size=48):
        assert step.held is not None
        assert step.held.sum() == 3
        trained = np.bincount(step.domains[~step.held], minlength=3)
        assert trained.sum() == 45
        sure = shares * 45 >= 1.0 if counts == "stratified" else np.zeros(3, dtype=bool)
        # π w over this, times the 48 rows that a mean divides by, is π w over the rows there are.
        divisors = np.where(sure, trained, 45 * shares)
        np.testing.assert_allclose(step.domain_shares * 48, divisors, rtol=1e-12)
        np.testing.assert_allclose(
            step.row_shares, np.bincount(step.domains, minlength=3) / 48, rtol=1e-12
        )


def test_domains_and_their_rows_take_turns_in_measured_steps_only() -> None:
    held = holdout(40, 3, 200, 8, every=5)  # of three rows none is held out
    domains: list[int] = []
    for step in range(400):
        riding = held.of_step(step, 24)
        assert bool(len(riding)) == ((step + 1) % 5 == 0)
        domains += riding.domains.tolist()
    assert domains == [0, 2, 3] * (len(domains) // 3)
    assert len(domains) == 80 * 24 // 16  # one row in sixteen of measured steps


def test_many_domains_ride_twice_within_a_half_life_if_there_is_room() -> None:
    held = holdout(*[100] * 20, every=10, half_life=50.0)
    window = [held.of_step(step, 64) for step in range(50)]
    domains = np.concatenate([rows.domains for rows in window])
    np.testing.assert_array_equal(np.bincount(domains), [2] * 20)
    crowded = holdout(*[100] * 200, every=10, half_life=50.0).of_step(9, 64)
    assert len(crowded) == 16


def test_a_plan_that_goes_on_draws_the_same() -> None:
    held = holdout(*SIZES)
    whole = plan(held)
    steps = []
    for step in whole.steps(0, 12, size=32):
        steps.append(step)
        whole.advance()
        if whole.completed == 5:
            saved = whole.state_dict()
    resumed = plan(holdout(*SIZES))
    resumed.load_state_dict(saved)
    for again, before in zip(resumed.steps(5, 12, size=32), steps[5:], strict=True):
        assert same_step(again, before)
        resumed.advance()


def test_a_batch_of_one_row_has_no_room() -> None:
    holdout(3, 2).check(1)  # nothing is held out
    with pytest.raises(ValueError, match="must be at least 2 where held-out rows ride"):
        holdout(*SIZES).check(1)


def test_held_out_rows_have_an_index_and_a_length_like_all_others() -> None:
    held = holdout(*SIZES)
    assert len(held.training) == sum(SIZES) > held.training.sizes.sum()
    sampler = PlanSampler(plan(held), Layout(8, 2), steps=4)
    sampler.group_by_length(np.arange(sum(SIZES)))
    assert len(list(sampler)) == 8
