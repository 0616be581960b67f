"""Schedules: weights by step, exact in the objective, in the shares and after a resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmix import Controller, Mixture, Schedule, Weights
from adaptmix.errors import StateError
from adaptmix.policies import Static

STAGES = {
    0: {"a": 3.0, "b": 1.0, "c": 0.0},
    6: {"a": 1.0, "b": 1.0, "c": 2.0},
    10: {"a": 0.0, "b": 1.0, "c": 1.0},
}
# The weights of a run's policy when a step was trained.
POLICY: dict[tuple[Controller, int], Weights] = {}
DIVISORS: dict[tuple[Controller, int], Any] = {}
LOSSES = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
pytestmark = pytest.mark.filterwarnings(
    "ignore::adaptmix.errors.RepetitionWarning", "ignore::adaptmix.errors.UnseenDomainWarning"
)


@given(step=st.integers(0, 30))
def test_weights_are_held_or_go_over_in_a_straight_line(step: int) -> None:
    rows = {
        at: np.array(list(stage.values())) / sum(stage.values()) for at, stage in STAGES.items()
    }
    held = rows[max(at for at in rows if at <= step)]
    assert Schedule(STAGES).at(step).tolist() == held.tolist()
    line = [np.interp(step, list(rows), [row[i] for row in rows.values()]) for i in range(3)]
    np.testing.assert_allclose(Schedule(STAGES, interpolate="linear").at(step), line, atol=1e-15)


def controller(importance: Any = None, size: int = 200, **options: Any) -> Controller:
    parts = {name: [i] * size for i, name in enumerate("abc")}
    return Controller(Mixture(parts, importance=importance), **{"policy": "static"} | options)


def train(
    run: Controller, stop: int, *, steps: int = 16, **options: Any
) -> list[tuple[int, float, list[int]]]:
    """Of each step up to ``stop``: its number, the slope of its loss, and rows per domain."""
    trained: list[tuple[int, float, list[int]]] = []
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    for batch in run.loader(64, steps=steps, **options):
        POLICY[run, run.completed] = run._adaptation.weights
        DIVISORS[run, run.completed] = run._order.draw_of(None).domain_shares
        [slope] = torch.autograd.grad(run.loss(LOSSES[batch] * scale), scale)
        trained.append((run.completed, float(slope), torch.bincount(batch, minlength=3).tolist()))
        run.step()
        if run.completed == stop:
            break
    return trained


class Wild:
    """A policy whose weights jump at every update."""

    requires = frozenset[str]()

    def init(self, domains: Any, run: Any) -> dict[str, Any]:
        return {"updates": 0, "importance": domains.importance}

    def update(self, stats: Any, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        jump = np.roll([0.1, 0.3, 0.6], state["updates"])
        loss = jump / (jump @ state["importance"])
        return Weights(jump[::-1], loss, state["importance"]), state | {
            "updates": state["updates"] + 1
        }


@pytest.mark.parametrize("interpolate", ["step", "linear"])
@pytest.mark.parametrize("policy", ["static", Static(loss={"a": 1, "b": 2, "c": 3}), Wild()])
def test_the_gradient_is_that_of_the_objective_of_the_step(policy: Any, interpolate: str) -> None:
    schedule = Schedule(STAGES, interpolate=interpolate)
    run = controller(schedule, policy=policy, lag=2, update_every=2)
    mean = run.mixture.importance
    trained = train(run, 16)
    for step, slope, counts in trained:
        objective = POLICY[run, step].loss * schedule.at(step)
        objective /= objective.sum()
        if np.array_equal(DIVISORS[run, step], np.array(counts) / 64):  # each is sure of a row
            assert slope == pytest.approx(objective @ LOSSES.numpy(), rel=1e-6)
        # What does not count is not drawn.
        assert not np.array(counts)[schedule.at(step) == 0.0].any()
    assert len(trained) == 16
    assert run.weights.importance.tolist() == schedule.at(16).tolist()
    assert np.abs(mean - run.weights.importance).max() > 0.1


@pytest.mark.parametrize("policy", ["static", Static(loss={"a": 1, "b": 2, "c": 3}), Wild()])
def test_shares_alone_are_scheduled_and_the_objective_stays(policy: Any) -> None:
    schedule = Schedule({0: {"a": 8, "b": 1, "c": 1}, 8: {"a": 1, "b": 1, "c": 8}})
    importance = {"a": 1.0, "b": 1.0, "c": 2.0}
    run = controller(importance, policy=policy, sampling=schedule, lag=2, update_every=2)
    for step, slope, counts in train(run, 16):
        objective = POLICY[run, step].loss * [0.25, 0.25, 0.5]
        assert slope == pytest.approx(objective @ LOSSES.numpy(), rel=1e-6)
        assert np.abs(np.array(counts) - 64 * schedule.at(step)).max() < 1.0
    assert run.weights.sampling.tolist() == pytest.approx([0.1, 0.1, 0.8])


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"max_epochs": {"a": 0.9}}])
def test_a_resumed_run_goes_on_to_the_bit(options: dict[str, Any]) -> None:
    schedule, limits = Schedule(STAGES, interpolate="linear"), options.pop("max_epochs", None)
    whole = train(controller(schedule, max_epochs=limits), 16, **options)
    first = controller(schedule, max_epochs=limits)
    start = train(first, 7)
    again = controller(schedule, max_epochs=limits)
    again.load_state_dict(first.state_dict())
    assert start + train(again, 16, **options) == whole
    other = controller(Schedule(STAGES), max_epochs=limits)
    with pytest.raises(StateError, match=r"^importance_schedule\.interpolate must be what the sav"):
        other.load_state_dict(first.state_dict())


def test_an_observing_run_is_drawn_by_the_importance_of_the_step() -> None:
    schedule = Schedule(STAGES)
    run = controller(schedule, mode="observe")
    for step, slope, counts in train(run, 16):
        assert np.abs(np.array(counts) - 64 * schedule.at(step)).max() < 1.0
        assert slope == pytest.approx(schedule.at(step) @ LOSSES.numpy(), rel=1e-6)
    with pytest.raises(ValueError, match=r"^when_exhausted, max_epochs and sampling must be left"):
        controller(mode="observe", sampling={"a": 1, "b": 1, "c": 1})


def test_what_a_schedule_would_undo_is_refused() -> None:
    run = controller(Schedule(STAGES))
    with pytest.raises(ValueError, match=r"^sampling must not be pinned where a Schedule changes"):
        run.pin("a", sampling=0.5)
    run.pin("a", loss=1.0)
    run = controller(sampling=Schedule({0: {"a": 1, "b": 1, "c": 0}, 4: {"a": 1, "b": 1, "c": 1}}))
    with pytest.raises(ValueError, match=r"^sampling must be > 0 for 'c', which counts; got 0 at"):
        train(run, 4)
    late = Schedule({0: {"a": 1, "b": 1, "c": 1}, 9: {"a": 1, "b": 1, "c": 0}})
    controller(sampling=late).loader(64, steps=9)
    with pytest.raises(
        ValueError, match=r"^sampling must be > 0 for 'c', which .* at step 9\. Give"
    ):
        controller(sampling=late).loader(64, steps=10)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([1, 2], r"stages must map steps to weights by name"),
        ({0: [1, 2]}, r"stages must map steps to weights by name"),
        ({}, r"stages must begin at step 0; got steps \[\]"),
        ({5: {"a": 1}}, r"stages must begin at step 0; got steps \[5\]"),
        (
            {0: {"a": 1}, 3: {"b": 1}},
            r"stages must name the same domains, a; got b at step 3\. Give",
        ),
        ({0: {"a": -1}}, r"stages\[0\] must be >= 0; got -1"),
        ({0: {"a": 0}}, r"values must not all be 0"),
        ({-1: {"a": 0}}, r"stages must be an integer >= 0; got -1"),
    ],
)
def test_stages_are_checked(stages: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        Schedule(stages)


def test_schedules_of_other_domains_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^importance must name every domain, a, b, c; got a sch"):
        controller(Schedule({0: {"a": 1}}))
    with pytest.raises(ValueError, match=r"^sampling must name every domain, a, b, c; got a sched"):
        controller(sampling={"a": 1})
    with pytest.raises(TypeError, match=r"^sampling must be a Schedule, or shares by name; got li"):
        controller(sampling=[1.0])
    with pytest.raises(ValueError, match=r"^interpolate must be one of"):
        Schedule(STAGES, interpolate="cubic")
