"""The loader: the same rows for any workers and processes, and loud refusals.

Also tests ``data/_collation.py``, ``data/_layout.py`` and ``data/_sampler.py``.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from adaptmix.data import Draw, Layout, Loader, Plan, PlanSampler
from adaptmix.errors import ExhaustedLoaderWarning, LagError
from tests import helpers_data as helpers
from tests.helpers_data import simplex

SIZES = (20, 9, 14)
STEPS = 6


def keep(rows: list[Any]) -> list[Any]:
    return rows


def loader_of(plan: Plan, **options: Any) -> Loader:
    shape = {"batch_size": 4, "accumulation": 1, "rank": 0, "world_size": 1}
    layout = Layout(**{name: options.pop(name, value) for name, value in shape.items()})
    sampler = PlanSampler(plan, layout, steps=options.pop("steps", STEPS))
    return Loader(sampler, **({"collate_fn": keep} | options))


def train(plan: Plan, *, stop: int = STEPS, **options: Any) -> list[tuple[list[int], Draw]]:
    """Iterate as a training loop does, with new shares after every step."""
    accumulation = options.get("accumulation", 1)
    drawn = []
    for batch, draw in loader_of(plan, **options).with_draws():
        drawn.append((batch, draw))
        if len(drawn) % accumulation == 0:
            rng = np.random.default_rng(plan.completed)
            plan.advance()
            plan.schedule.publish(simplex(rng.uniform(0.1, 1.0, len(SIZES)).tolist()))
            if plan.completed == stop:
                break
    return drawn


def record(draw: Draw) -> dict[str, Any]:
    """All that a draw says, in plain values."""
    return {
        "rows": draw.rows.tolist(),
        "domains": draw.domains.tolist(),
        "fresh": draw.fresh.tolist(),
        "shares": draw.domain_shares.tolist(),
        "ordinal": draw.ordinal,
        "step": draw.step,
    }


def test_batches_meet_their_draws() -> None:
    plan = helpers.plan(SIZES)
    for number, (batch, draw) in enumerate(train(plan, accumulation=2)):
        assert batch == draw.rows.tolist()
        assert len(draw) == len(batch) == 4
        assert draw.plan is plan
        assert draw.ordinal == number
        assert draw.step == number // 2
        assert np.array_equal(plan.mixture.domain_of(batch), draw.domains)
        exact = torch.from_numpy(draw.domain_shares)[draw.domains]
        assert torch.equal(draw.shares, exact.float())
        assert draw.rows.dtype == draw.domains.dtype == torch.int64
        assert draw.fresh.dtype == torch.bool


@pytest.mark.parametrize("accumulation", [1, 3])
def test_workers_do_not_change_what_is_drawn(accumulation: int) -> None:
    options: dict[str, Any] = {"accumulation": accumulation}
    alone = train(helpers.plan(SIZES, lag=4), **options)
    shared = train(helpers.plan(SIZES, lag=4), num_workers=2, **options)
    assert len(alone) == STEPS * accumulation
    assert [record(draw) for _, draw in shared] == [record(draw) for _, draw in alone]
    assert [batch for batch, _ in shared] == [batch for batch, _ in alone]


@pytest.mark.parametrize(
    ("workers", "prefetch", "accumulation", "lag"), [(2, 1, 1, 2), (1, 3, 2, 2), (1, 2, 3, 1)]
)
def test_the_smallest_lag_that_is_taken_is_enough(
    workers: int, prefetch: int, accumulation: int, lag: int
) -> None:
    options: dict[str, Any] = {
        "num_workers": workers,
        "prefetch_factor": prefetch,
        "accumulation": accumulation,
    }
    with pytest.raises(LagError, match=rf"^lag must be at least {lag} with .*got {lag - 1}\. Use"):
        loader_of(helpers.plan(SIZES, lag=lag - 1), **options)
    assert len(train(helpers.plan(SIZES, lag=lag), **options)) == STEPS * accumulation


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_see_together_what_one_sees(accumulation: int) -> None:
    options: dict[str, Any] = {"accumulation": accumulation}
    whole = train(helpers.plan(SIZES), batch_size=6, **options)
    ranks = [
        train(helpers.plan(SIZES), batch_size=3, rank=rank, world_size=2, **options)
        for rank in range(2)
    ]
    for (batch, draw), *parts in zip(whole, *ranks, strict=True):
        assert batch == [row for part, _ in parts for row in part]
        for field in ("rows", "domains", "fresh", "shares"):
            assert torch.equal(
                torch.cat([getattr(part, field) for _, part in parts]), getattr(draw, field)
            )
        assert all(part.ordinal == draw.ordinal for _, part in parts)
        assert all(np.array_equal(p.domain_shares, draw.domain_shares) for _, p in parts)


def test_a_loader_goes_on_where_training_stopped() -> None:
    whole = train(helpers.plan(SIZES), accumulation=2)
    plan = helpers.plan(SIZES)
    first = train(plan, stop=2, accumulation=2)
    loader = loader_of(plan, accumulation=2)
    assert len(loader) == (STEPS - 2) * 2
    rest = train(plan, accumulation=2)
    assert [record(draw) for _, draw in first + rest] == [record(draw) for _, draw in whole]


def test_prefetched_batches_that_were_not_trained_come_again() -> None:
    plan = helpers.plan(SIZES, lag=4)
    batches = iter(loader_of(plan).with_draws())
    looked_at = [record(next(batches)[1]) for _ in range(3)]
    again = iter(loader_of(plan).with_draws())
    assert [record(next(again)[1]) for _ in range(3)] == looked_at


def test_random_states_outside_are_left_alone() -> None:
    torch.manual_seed(0)
    random.seed(0)
    before, python = torch.get_rng_state(), random.getstate()
    for workers in (0, 1):
        train(helpers.plan(SIZES, lag=4), num_workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_an_exhausted_loader_says_so() -> None:
    plan = helpers.plan(SIZES)
    train(plan)
    loader = loader_of(plan)
    assert len(loader) == 0
    with pytest.warns(ExhaustedLoaderWarning, match=r"^All 6 steps are trained"):
        assert list(loader) == []


@pytest.mark.parametrize("name", ["shuffle", "sampler", "batch_sampler", "drop_last"])
def test_what_the_plan_decides_may_not_be_given(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must not be given: the plan decides it\."):
        loader_of(helpers.plan(SIZES), **{name: None})


def test_batches_must_keep_their_order() -> None:
    with pytest.raises(ValueError, match=r"^in_order must be True, .*; got False\.$"):
        loader_of(helpers.plan(SIZES), in_order=False)
    assert len(loader_of(helpers.plan(SIZES), in_order=True)) == STEPS


@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_there_must_be_steps(steps: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^steps must be an integer >= 1; got "):
        loader_of(helpers.plan(SIZES), steps=steps)


def test_running_ahead_by_hand_is_caught_too() -> None:
    """Someone who reads on without training meets the plan's own guard."""
    batches = iter(loader_of(helpers.plan(SIZES, lag=1)))
    next(batches)
    next(batches)
    with pytest.raises(LagError, match=r"^lag must be at least the steps a loader runs ahead"):
        next(batches)
