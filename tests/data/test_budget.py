"""When a domain runs out: limits hold whatever happens, and the objective stays the stated one."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from adaptmix.data._budget import WAYS, Budget
from adaptmix.data._layout import Layout
from adaptmix.data._plan import Plan
from adaptmix.data._sampler import PlanSampler
from adaptmix.state import _checkpoint as checkpoint
from tests import helpers_data as helpers
from tests.trials.reference import Reference, Rules

LAYOUTS = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (4, 1, 2), (1, 4, 2), (2, 1, 4)]
NEVER = float("inf")


class RunsOut(RuleBasedStateMachine):
    """Trains, publishes, draws ahead, saves and goes on elsewhere, beside ``Reference``."""

    size = 8

    @initialize(
        sizes=st.lists(st.integers(3, 25), min_size=1, max_size=5),
        way=st.sampled_from(WAYS),
        lag=st.integers(0, 3),
        seed=st.integers(0, 3),
        steps=st.integers(1, 25),
        data=st.data(),
    )
    def begin(
        self, sizes: list[int], way: str, lag: int, seed: int, steps: int, data: st.DataObject
    ) -> None:
        limits = {
            f"d{i}": data.draw(st.sampled_from([0.5, 1.0, 1.5, 4.0]))
            for i in range(len(sizes))
            if data.draw(st.booleans())
        }
        mixture = helpers.mixture(*sizes)
        default = 1.0 if way in ("stop_first", "drop") else NEVER
        rows = [float(np.floor(limits.get(f"d{i}", default) * n)) for i, n in enumerate(sizes)]
        if way == "repeat" and sum(rows) < self.size:  # not even for one step
            limits, rows = {}, [NEVER] * len(sizes)
        if way == "repeat" and sum(rows) < self.size * steps:
            steps = int(sum(rows)) // self.size
        self.plan_options: dict[str, Any] = {
            "shares": mixture.importance,
            "lag": lag,
            "seed": seed,
            "when_exhausted": way,
            "max_epochs": limits or None,
        }
        self.mixture, self.steps, self.limits = mixture, steps, rows
        rules = Rules(
            {f"d{i}": size for i, size in enumerate(sizes)},
            way,
            limits,
            seed=seed,
            size=self.size,
            horizon=steps,
        )
        self.reference = Reference(rules, mixture.importance.tolist())
        self.state: Any = None
        self.restart(LAYOUTS[0])

    @rule(layout=st.sampled_from(LAYOUTS))
    def restart(self, layout: tuple[int, int, int]) -> None:
        """Go on in other processes, with other micro-batches, from a saved state."""
        batch_size, accumulation, world = layout
        plans = [Plan(self.mixture, **self.plan_options) for _ in range(world)]
        if self.state is not None:
            for plan in plans:
                plan.load_state_dict(checkpoint.decode(self.state))
        self.samplers = [
            PlanSampler(plan, Layout(batch_size, accumulation, rank, world), steps=self.steps)
            for rank, plan in enumerate(plans)
        ]
        self.iterators = [iter(sampler) for sampler in self.samplers]
        self.drawn: list[list[Any]] = [[] for _ in plans]

    @rule(
        ahead=st.integers(0, 3),
        shares=st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0]), min_size=5, max_size=5),
        publish=st.booleans(),
    )
    def train(self, ahead: int, shares: list[float], publish: bool) -> None:
        """Train one step, drawn as far ahead as the lag allows, and publish shares after it."""
        plans = [sampler.plan for sampler in self.samplers]
        step, accumulation = plans[0].completed, self.samplers[0].layout.accumulation
        if step >= self.steps:
            return
        wanted = (1 + min(ahead, plans[0].lag)) * accumulation
        for batches, drawn in zip(self.iterators, self.drawn, strict=True):
            while len(drawn) < wanted and (rows := next(batches, None)) is not None:
                drawn.append(rows)
        expected = self.reference.step(step)
        if expected is None:
            assert not any(self.drawn)
            assert {plan.end for plan in plans} == {step}
            return
        self.compare(step, expected)
        for plan in plans:
            plan.advance()
        weights = np.array(shares[: len(self.limits)]) + 1e-3
        if publish:
            for plan in plans:
                plan.publish(weights / weights.sum())
            in_force = step + 1 + plans[0].lag
            self.reference.published[in_force] = (weights / weights.sum()).tolist()
        self.state = checkpoint.encode(plans[0].state_dict())

    def compare(self, step: int, expected: Any) -> None:
        """Hold all micro-batches of all processes against the step written down."""
        found = []
        for _ in range(self.samplers[0].layout.accumulation):
            for sampler, drawn in zip(self.samplers, self.drawn, strict=True):
                draw = sampler.take(drawn.pop(0).ordinal)
                assert draw.step == step
                found += list(
                    zip(draw.rows.tolist(), draw.domains.tolist(), draw.fresh.tolist(), strict=True)
                )
                np.testing.assert_allclose(draw.domain_shares, expected.divisors, rtol=1e-9)
                spent = [False] * len(self.limits) if draw.spent is None else draw.spent.tolist()
                assert spent == expected.spent
        names = self.reference.rules.names
        for (row, domain, fresh), (name, number), first in zip(
            found, expected.rows, expected.fresh, strict=True
        ):
            assert (names[domain], fresh) == (name, first)
            assert row == self.mixture.rows_of(domain, number)

    @invariant()
    def no_limit_is_passed_and_no_row_is_repeated_or_lost(self) -> None:
        if not hasattr(self, "reference"):
            return
        rules = self.reference.rules
        for name, count in self.reference.drawn.items():
            assert count <= rules.limit(name)
            times = [self.reference.times[name, row] for row in range(rules.sizes[name])]
            assert max(times) - min(times) <= 1
            assert sum(times) == count


RunsOut.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestRunsOut = RunsOut.TestCase


def drawn_by(way: str, limits: Any, *, steps: int = 50, size: int = 6, **options: Any) -> Any:
    """The plan, its drawn steps, and the rows that each domain gave."""
    mixture = helpers.mixture(30, 40, 200)
    shares = np.array([0.5, 0.3, 0.2])
    plan = Plan(
        mixture, shares=shares, lag=steps, seed=0, when_exhausted=way, max_epochs=limits, **options
    )
    plan.check(size=size, horizon=steps)
    drawn = list(plan.steps(0, steps, size=size))
    rows = np.sum([step.row_shares for step in drawn], axis=0) * size
    return plan, drawn, rows.round().astype(int).tolist()


def test_a_limit_is_spread_over_the_run() -> None:
    _, drawn, rows = drawn_by("repeat", {"d0": 2})
    assert len(drawn) == 50
    assert rows[0] == 60
    halves = [sum(step.row_shares[0] for step in part) * 6 for part in (drawn[:25], drawn[25:])]
    assert max(halves) < 40  # 2 standard deviations are 4
    # The others keep their proportions.
    assert abs(rows[1] / rows[2] - 1.5) < 0.05


def test_the_run_stops_before_the_first_domain_passes_its_limit() -> None:
    plan, drawn, rows = drawn_by("stop_first", None)
    assert plan.end == len(drawn) == 10
    assert rows[0] == 30


def test_the_run_stops_once_every_domain_was_drawn_through() -> None:
    plan, drawn, rows = drawn_by("stop_all", None, steps=500)
    assert plan.end == len(drawn)
    assert 200 <= rows[2] < 206
    assert rows[0] > 200


def test_a_domain_that_is_dropped_leaves_its_share_to_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="adaptmix"):
        _, drawn, rows = drawn_by("drop", {"d0": 1, "d1": 3, "d2": 9})
    assert rows[0] == 30
    dropped = next(step for step in drawn if step.spent is not None)
    assert dropped.step == 10
    assert dropped.spent.tolist() == [True, False, False]
    assert dropped.domain_shares[0] == 0.0
    assert [message[:36] for message in caplog.messages] == [
        "Used up, after max_epochs: 'd0' (1).",
        "Used up, after max_epochs: 'd1' (3).",
    ]


def test_fewer_rows_than_the_run_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^max_epochs must allow the 300 rows .* got 270\. Raise"):
        drawn_by("repeat", 1)
    _, drawn, rows = drawn_by("drop", 1)
    assert (len(drawn), sum(rows)) == (45, 270)


def test_counts_that_may_pass_a_limit_are_refused() -> None:
    with pytest.raises(ValueError, match=r'^counts must be "stratified" where max_epochs'):
        drawn_by("drop", 1, counts="multinomial")
    _, _, rows = drawn_by("stop_first", None, counts="multinomial")
    assert max(rows[0] / 30, rows[1] / 40, rows[2] / 200) <= 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when_exhausted": "cycle"}, r"when_exhausted must be one of .*; got 'cycle'"),
        ({"max_epochs": {"x": 1}}, r"max_epochs must name domains of the mixture; got 'x'\. The"),
        ({"max_epochs": 0}, r"max_epochs must be .*; got 0"),
        ({"max_epochs": {"b": -1.0}}, r"max_epochs\['b'\] must be .*; got -1"),
        ({"max_epochs": 0.1}, r"max_epochs must allow at least one row of each domain; got 0\.1 f"),
    ],
)
def test_options_have_their_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Budget(("a", "b"), np.array([5, 20]), **options)


def test_steps_know_what_is_used_up_in_any_order() -> None:
    _, drawn, _ = drawn_by("drop", {"d0": 1, "d1": 3, "d2": 9})
    moved = drawn[-1].in_order(np.arange(6)[::-1])
    assert dataclasses.asdict(moved)["spent"].tolist() == drawn[-1].spent.tolist()
