"""Grouping by length: other micro-batches of the same rows, with all that belongs to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix.data import Draw, Layout, PlanSampler
from adaptmix.errors import LengthGroupingWarning
from tests import helpers_data as helpers

SIZES = (20, 9, 14)
STEPS = 6
# Many rows of one length, so that ties have to be broken.
LENGTHS = np.random.default_rng(0).integers(1, 5, sum(SIZES))


def draws(
    *, grouped: bool = True, batch_size: int = 4, rank: int = 0, world_size: int = 1
) -> list[list[Draw]]:
    """The micro-batches of each step on one process, three a step."""
    plan = helpers.plan(SIZES)
    layout = Layout(batch_size, 3, rank, world_size)
    sampler = PlanSampler(plan, layout, steps=STEPS, epoch_steps=1)
    if grouped:
        sampler.group_by_length(LENGTHS)
    listed = []
    for _ in range(STEPS):
        listed.append([sampler.take(getattr(rows, "ordinal", -1)) for rows in sampler])
        plan.advance()
    return listed


def listed(step: list[Draw]) -> list[tuple[Any, ...]]:
    """A step's rows with their domain, and whether they are new, in the order they are trained."""
    return [
        row
        for draw in step
        for row in zip(draw.rows.tolist(), draw.domains.tolist(), draw.fresh.tolist(), strict=True)
    ]


def test_steps_have_their_rows_from_the_longest_to_the_shortest() -> None:
    for plain, grouped in zip(draws(grouped=False), draws(), strict=True):
        stable = sorted(listed(plain), key=lambda row: -int(LENGTHS[row[0]]))
        assert listed(grouped) == stable != listed(plain)
        for one, other in zip(plain, grouped, strict=True):
            assert one.ordinal == other.ordinal
            assert np.array_equal(one.domain_shares, other.domain_shares)
    assert any(not fresh for step in draws() for _, _, fresh in listed(step))


def test_processes_get_neighbours() -> None:
    whole = draws(batch_size=4)
    ranks = [draws(batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for step, *parts in zip(whole, *ranks, strict=True):
        together = [
            row for pair in zip(*parts, strict=True) for draw in pair for row in listed([draw])
        ]
        assert together == listed(step)


def test_lengths_are_those_of_the_mixtures_rows() -> None:
    sampler = PlanSampler(helpers.plan(SIZES), Layout(4, 3), steps=1)
    with pytest.raises(ValueError, match=r"one entry per row of the mixture \(43\); got .*\(42,\)"):
        sampler.group_by_length(LENGTHS[1:])


@pytest.mark.parametrize(("accumulation", "world_size"), [(1, 1), (2, 1), (1, 2)])
def test_one_micro_batch_cannot_be_grouped(accumulation: int, world_size: int) -> None:
    layout = Layout(4, accumulation, 0, world_size)
    sampler = PlanSampler(helpers.plan(SIZES), layout, steps=1)
    if accumulation * world_size > 1:
        sampler.group_by_length(LENGTHS)
        return
    with pytest.warns(LengthGroupingWarning, match="only one micro-batch, so nothing changes"):
        sampler.group_by_length(LENGTHS)
