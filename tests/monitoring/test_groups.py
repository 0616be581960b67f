"""Seeds make groups, and groups make intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from adaptmix import Controller, policies
from adaptmix.monitoring._comparison import compare, steps_to_reach
from adaptmix.monitoring._groups import grouped, over_seeds
from adaptmix.monitoring._reading import read_runs
from adaptmix.monitoring._record import RunRecord, Series
from tests import runs
from tests.monitoring import made


def test_runs_that_differ_in_their_seed_only_are_a_group_and_observed_ones_come_first() -> None:
    groups = grouped(
        [
            *made.seeds("joint-seed", [2.0, 2.1], configuration={"policy": "joint"}),
            *made.seeds("plain", [2.0, 2.1, 2.2], mode="observe"),
        ]
    )
    assert [(group.label, group.seeds) for group in groups] == [
        ("plain", (0, 1, 2)),
        ("joint", (0, 1)),
    ]


def test_runs_of_one_configuration_and_one_seed_differ_in_what_is_not_known() -> None:
    groups = grouped([made.record("slow"), made.record("fast")])
    assert [group.label for group in groups] == ["slow", "fast"]


class Tilted:
    """A user's policy: of no name, and no dataclass."""

    requires: frozenset[str] = frozenset()

    def __init__(self, tilt: float) -> None:
        self.tilt = tilt

    def init(self, *given: Any) -> Any:
        return policies.Static().init(*given)

    def update(self, stats: Any, state: Any) -> Any:
        return policies.Static().update(stats, state)


def test_policies_of_one_class_with_other_settings_are_no_seeds_of_each_other(
    tmp_path: Path,
) -> None:
    def log(name: str, tilt: float, seed: int) -> None:
        controller = Controller(runs.mixture(), policy=Tilted(tilt), lag=2, seed=seed)
        controller.log_to(tmp_path / name)
        runs.Run(controller, runs.model(), steps=12).train()

    for name, tilt, seed in (("a", 0.1, 0), ("b", 0.9, 1), ("c", 0.1, 1)):
        log(name, tilt, seed)
    groups = grouped(read_runs([tmp_path]))
    assert sorted([run.label for run in group.runs] for group in groups) == [["a", "c"], ["b"]]


def test_a_label_given_by_hand_makes_a_group() -> None:
    records = [made.record("mine", seed=0), made.record("mine", configuration={"steps": 5})]
    assert [len(group.runs) for group in grouped(records)] == [2]


def test_groups_of_one_name_are_told_apart() -> None:
    groups = grouped([made.record("run-0", mode="observe"), made.record("run-1")])
    assert [group.label for group in groups] == ["run-0", "run-1"]
    both = grouped(
        [
            *made.seeds("run", [1.0, 2.0], mode="observe"),
            *made.seeds("run_", [1.0, 2.0]),
        ]
    )
    assert [group.label for group in both] == ["run (observed, 1)", "run (variance_aware, 2)"]


def test_intervals_over_seeds_are_students() -> None:
    values = [1.0, 1.3, 0.9, 1.2]
    estimate = over_seeds(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert not over_seeds([1.0]).sure


def test_groups_with_other_seeds_are_compared_by_welch() -> None:
    old, new = [2.0, 2.2, 2.1], [1.7, 1.8]
    after = [made.record(f"n-{i}", seed=10 + i, losses=[x] * 3) for i, x in enumerate(new)]
    baseline, judged = grouped([*made.seeds("plain", old, mode="observe"), *after])
    outcome = compare(baseline, judged).objective
    assert outcome is not None
    test = stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
    assert (outcome.change.low, outcome.change.high) == pytest.approx((test.low, test.high))


def test_intervals_of_domains_hold_together() -> None:
    # Nothing differs but by noise; in 400 comparisons of 20 domains at 95 % each, 97 % of them
    # would show a domain that is worse. Together, at most 2.5 % + 3 standard errors of 0.8 %.
    generator = np.random.default_rng(0)
    names = [f"d{i}" for i in range(20)]
    column = [0.05] * 20

    def runs(mode: str) -> list[RunRecord]:
        return [
            made.record(
                f"{mode}-{seed}",
                mode=mode,
                seed=seed,
                names=names,
                losses=(2.0 + 0.1 * generator.standard_normal(20)).tolist(),
                shares=column,
                weights=[1.0] * 20,
                epochs=[1.0] * 20,
                gradients=False,
            )
            for seed in range(3)
        ]

    alarms = [bool(compare(*grouped([*runs("observe"), *runs("adapt")])).worse) for _ in range(400)]
    assert np.mean(alarms) < 0.05


def test_a_single_run_is_taken_to_spread_as_the_others_do() -> None:
    single = [made.record("n", seed=5, losses=[1.8] * 3)]
    baseline, judged = grouped([*made.seeds("plain", [2.0, 2.2, 2.1], mode="observe"), *single])
    outcome = compare(baseline, judged).objective
    assert outcome is not None
    # A prediction interval: t(2) · 0.1 · √(1 + 1/3).
    assert outcome.change.margin == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 * np.sqrt(4 / 3))


def test_runs_of_other_lengths_are_compared_where_both_were_evaluated() -> None:
    short = made.record("short", mode="observe")
    cut = {
        name: Series(series.steps[:5], series.values[:5])
        for name, series in short.by_domain["heldout_loss"].items()
    }
    short.by_domain["heldout_loss"].update(cut)  # type: ignore[attr-defined]
    baseline, judged = grouped([short, made.record("long")])
    outcome = compare(baseline, judged).objective
    assert outcome is not None
    assert outcome.step == 600
    assert outcome.change.value == 0.0


def test_when_a_loss_is_reached_is_interpolated() -> None:
    curve = Series(np.array([100, 200, 300]), np.array([3.0, 2.0, 1.0]))
    assert steps_to_reach(curve, 1.5) == 250.0
    assert steps_to_reach(curve, 5.0) == 100.0
    assert steps_to_reach(curve, 0.5) is None
