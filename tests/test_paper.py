"""The paper's experiments run, and their tables and pictures say what was measured."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAPER = Path(__file__).parents[1] / "examples" / "paper"
STEPS = 40


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of examples/paper as its scripts do."""
    monkeypatch.syspath_prepend(PAPER)
    return importlib.import_module


def short(experiment: Any) -> Any:
    """Keep the last setting of an experiment, trained for a few steps."""
    name, setting = list(experiment.settings.items())[-1]
    settings = {name: dataclasses.replace(setting, steps=STEPS)}
    return dataclasses.replace(experiment, settings=settings)


# Domains' noise is far apart on purpose, as in the paper. In so few steps misfit passes for noise,
# so that Joint turns to one domain for a while.
@pytest.mark.filterwarnings(
    "ignore::adaptmix.errors.LossWeightWarning", "ignore::adaptmix.errors.CollapseWarning"
)
@pytest.mark.parametrize("module", ["linear", "logistic", "digits"])
def test_every_policy_trains(paper: Any, module: str) -> None:
    common = paper("common")
    experiment = short(paper(module).EXPERIMENT)
    (setting,) = experiment.settings.values()
    errors = {policy: experiment.train(setting, policy, 0) for policy in common.NAMES}
    points = STEPS // experiment.every
    assert all(len(values) == points and np.isfinite(values).all() for values in errors.values())
    assert errors["proportional"] != errors["uniform"]
    assert errors["proportional"] == experiment.train(setting, "proportional", 0)


def test_averaged_steps_are_those_of_the_recursion(paper: Any) -> None:
    linear = paper("linear")
    variance, mean = 0.0, 0.0  # of θ ← (1 − r) θ + r g with independent g of mean and variance 1
    for step in range(50):
        rate = linear.RATE / (1.0 + step / linear.DECAY)
        mean, variance = (1 - rate) * mean + rate, (1 - rate) ** 2 * variance + rate**2
    assert linear.averaged_steps(50) == pytest.approx(mean**2 / variance)


def test_run_makes_a_table_and_a_picture(paper: Any, tmp_path: Path) -> None:
    common, linear = paper("common"), paper("linear")
    experiment = short(linear.EXPERIMENT)
    found = common.run([experiment], seeds=1, processes=1)["linear"]
    ((name, setting),) = experiment.settings.items()
    assert found[name]["VA"][0].tolist() == experiment.train(setting, "VA", 0)
    lines = common.table(found).splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 * (1 + len(common.NAMES))
    last = {policy: curves[0, -STEPS // 4 :].mean() for policy, curves in found[name].items()}
    final = last["Joint"] / last["FGLS+VA"]
    assert f"| Joint / FGLS+VA | {final:.3g} ({final:.3g} to {final:.3g}) |" in lines
    common.draw_figure(experiment, found, tmp_path / "linear.png")
    assert (tmp_path / "linear.png").stat().st_size > 0


def test_interval_holds_the_median(paper: Any) -> None:
    values = np.random.default_rng(0).normal(size=21)
    median, low, high = paper("common").interval(values)
    assert low < median < high
    assert median == np.median(values)
