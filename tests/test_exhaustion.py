"""Runs whose domains run out train on the stated objective, and end where they should."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from adaptmix import Controller, Mixture
from adaptmix.data import Plan
from adaptmix.errors import ExhaustedLoaderWarning, ObjectiveError
from adaptmix.policies import Static
from tests.helpers_data import SIGMAS

IMPORTANCE = {"a": 0.5, "b": 0.3, "c": 0.2}
# The loss of every row of a domain, so that a step's loss is known exactly.
LOSSES = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)


def controller(sizes: tuple[int, int, int] = (40, 40, 400), **options: Any) -> Controller:
    parts = {name: [i] * size for i, (name, size) in enumerate(zip(IMPORTANCE, sizes, strict=True))}
    policy = Static(sampling={"a": 0.5, "b": 0.25, "c": 0.25}, loss={"a": 1.0, "b": 2.0, "c": 0.5})
    mixture = Mixture(parts, importance=IMPORTANCE)
    return Controller(mixture, policy=options.pop("policy", policy), **options)


def train(run: Controller, batch_size: int, steps: int) -> list[tuple[float, list[int]]]:
    """The loss of each step, and the rows of each domain in it."""
    trained = []
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    for batch in run.loader(batch_size, steps=steps):
        loss = run.loss(LOSSES[batch] * scale)
        [slope] = torch.autograd.grad(loss, scale)
        run.step()
        trained.append((float(slope), torch.bincount(batch, minlength=3).tolist()))
    return trained


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"when_exhausted": "drop"}, 21),
        ({"when_exhausted": "stop_first"}, 5),
        ({"when_exhausted": "stop_all"}, 100),
        ({"max_epochs": {"a": 1, "b": 3}}, 24),
        ({"when_exhausted": "stop_all", "max_epochs": {"a": 2, "b": 3}}, 24),
    ],
)
def test_every_step_has_the_gradient_of_the_stated_objective(
    options: dict[str, Any], steps: int
) -> None:
    """Domains that are left count π w, scaled to sum to one; here each is sure of a row."""
    run = controller(**options)
    target = run.mixture.importance * np.array([1.0, 2.0, 0.5])
    target /= target.sum()
    limits = run.mixture.sizes * np.array(run._plan.budget.max_epochs)
    drawn = np.zeros(3)
    trained = train(run, 16, steps)
    assert len(trained) == steps or run.ended
    for slope, counts in trained:
        counted = np.where(drawn < limits, target, 0.0)
        if all(count for count, part in zip(counts, counted, strict=True) if part):
            assert slope == pytest.approx(counted @ LOSSES.numpy() / counted.sum(), rel=1e-6)
        drawn += counts
        assert (drawn <= limits).all()


def test_a_limit_below_a_row_per_step_is_unbiased() -> None:
    """Mean over 2000 seeds, while rows of every domain are left; a false alarm is 7e-6."""
    mixture, target = controller((10, 40, 400)).mixture, np.array([0.5, 0.3, 0.2])
    slopes = []
    for seed in range(2000):
        plan = Plan(mixture, shares=target, lag=9, seed=seed, max_epochs={"a": 0.5, "b": 0.2})
        slopes += [
            (target / step.domain_shares * step.row_shares) @ LOSSES.numpy()
            for step in plan.steps(0, 8, size=4, horizon=12)
            if step.spent is None
        ]
    error = np.std(slopes) / np.sqrt(len(slopes))
    assert abs(np.mean(slopes) - target @ LOSSES.numpy()) < SIGMAS * error


def test_a_run_that_ends_early_says_so() -> None:
    run = controller(when_exhausted="stop_first")
    loader = run.loader(16, steps=100)
    batches = 0
    for batch in loader:
        run.loss(LOSSES[batch].requires_grad_()).backward()
        run.step()
        batches += 1
    assert batches == run.completed == 5
    assert run.ended
    assert len(loader) == 0
    with pytest.warns(ExhaustedLoaderWarning, match=r"^Rows are used up \(when_exhausted=, max"):
        assert list(loader) == []
    again = controller(when_exhausted="stop_first")
    again.load_state_dict(run.state_dict())
    assert list(again.loader(16, steps=100)) == []
    assert again.ended


def test_nothing_that_counts_must_not_be_all_that_is_left() -> None:
    run = controller(policy=Static(loss={"a": 1.0, "b": 1.0, "c": 0.0}), when_exhausted="drop")
    with pytest.raises(ObjectiveError, match=r"^A domain that counts must be left; those with"):
        train(run, 16, 100)


def test_the_shares_in_force_are_those_that_are_left() -> None:
    run = controller(max_epochs={"a": 1})
    train(run, 16, 20)
    assert run.weights.sampling[0] == 0.5
    shares = run._plan.shares_at(20)
    assert shares is not None
    assert shares[0] < 0.2


def test_an_observing_run_has_no_limits() -> None:
    with pytest.raises(
        ValueError, match=r"^when_exhausted, max_epochs and sampling must be left out"
    ):
        controller(mode="observe", max_epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller(mode="observe")
