"""Mean gradients are those of each step's objective, under stages and limits, in both units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture, Schedule
from adaptmix._checks import FloatArray
from tests.helpers_data import SIGMAS

NAMES, SIZES = ("a", "b", "c"), (60, 90, 300)
STEPS, ROWS, LONGEST, WIDTH = 1200, 4, 6, 4
IMPORTANCE = {"a": 0.5, "b": 0.2, "c": 0.3}
BEGIN, END = {"a": 8.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 8.0}
CASES: dict[str, dict[str, Any]] = {
    "importance in stages": {"importance": Schedule({0: BEGIN, STEPS: END}, interpolate="linear")},
    "shares in stages": {"sampling": Schedule({0: BEGIN, 500: END, 1000: BEGIN})},
    "limits that bound shares": {"max_epochs": {"a": 3, "b": 9.5}},
    "domains that are dropped": {"when_exhausted": "drop", "max_epochs": {"a": 7, "b": 2, "c": 99}},
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::adaptmix.errors.RepetitionWarning", "ignore::adaptmix.errors.UnseenDomainWarning"
)


def parts() -> dict[str, tuple[FloatArray, FloatArray]]:
    """Of each domain (rows, WIDTH) gradients and (rows,) tokens, which go together."""
    rng = np.random.default_rng(0)
    found = {}
    for number, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        tokens = rng.integers(1, LONGEST + 1, size).astype(np.float64)
        gradients = rng.standard_normal((size, WIDTH)) + 4 * rng.standard_normal(WIDTH)
        found[name] = (1 + number) * gradients + tokens[:, np.newaxis], tokens
    return found


def scores(unit: str, options: dict[str, Any]) -> tuple[FloatArray, FloatArray]:
    """(WIDTH,) z-scores of the mean gradient's error, and those of a forgetful one.

    That one divides by the shares that were asked for, and knows one objective for all steps.
    """
    options = dict(options)
    rows = parts()
    datasets: dict[str, Any] = {
        name: TensorDataset(torch.from_numpy(gradients), torch.from_numpy(tokens))
        for name, (gradients, tokens) in rows.items()
    }
    mixture = Mixture(datasets, importance=options.pop("importance", IMPORTANCE))
    lengths = {name: float(tokens.mean()) for name, (_, tokens) in rows.items()}
    run = Controller(
        mixture,
        policy="static",
        unit=unit,
        lag=3,
        seed=1,
        tokens_per_row=lengths if unit == "token" else None,
        **options,
    )
    power = 1.0 if unit == "token" else 0.0
    means = np.array([np.average(g, axis=0, weights=t**power) for g, t in rows.values()])
    asked = mixture.importance / (np.array([*lengths.values()]) if unit == "token" else 1.0)
    errors, forgetful = [], []
    for (gradients, tokens), draw in run.loader(ROWS, steps=STEPS).with_draws():
        mask = torch.arange(LONGEST) < tokens[:, None]
        losses = torch.zeros(ROWS, LONGEST, dtype=torch.float64, requires_grad=True)
        [slopes] = torch.autograd.grad(run.loss(losses, mask=mask, draw=draw), losses)
        found = (slopes.sum(1) @ gradients).numpy()
        importance = run.weights.importance
        if draw.spent is not None:
            importance = np.where(draw.spent, 0.0, importance)
            importance = importance / importance.sum()
        errors.append(found - importance @ means)
        factors = draw.domain_shares / (asked / asked.sum())
        naive = slopes.sum(1).numpy() * factors[draw.domains.numpy()]
        forgetful.append(naive @ gradients.numpy() - mixture.importance @ means)
        run.step()
    return z_scores(errors), z_scores(forgetful)


def z_scores(errors: list[FloatArray]) -> FloatArray:
    stacked = np.array(errors)
    # Rows come without replacement, which only makes the mean quieter than this says.
    return np.asarray(stacked.mean(0) / (stacked.std(0) / np.sqrt(len(stacked))))


@pytest.mark.parametrize("unit", ["sample", "token"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_gradient_is_that_of_the_objective(case: str, unit: str) -> None:
    """32 z-scores in all: a false alarm in 4,600 seeds, and the seed is fixed.

    Batches have fewer rows than would make each domain sure of one.
    """
    ours, forgetful = scores(unit, CASES[case])
    assert np.abs(ours).max() < SIGMAS
    assert np.abs(forgetful).max() > 2 * SIGMAS
