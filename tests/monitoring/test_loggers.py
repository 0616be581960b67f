"""A plain loop with any object that has ``log(dict, step)``, as Weights & Biases' runs do."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from torch.nn import functional as F

from adaptmix import Controller, Mixture
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.AdaptMixWarning")
# What MLflow takes as a metric's name.
_MLFLOW = re.compile(r"[/\w.\- :]+")


class Logger:
    """What Weights & Biases' runs, MLflow's wrappers and one's own loggers have in common."""

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.logged[step] = dict(values)


def test_a_plain_loop_logs_to_any_logger() -> None:
    parts = {"c++": runs.dataset(40, seed=0, scale=1.0), "web": runs.dataset(24, seed=1, scale=3.0)}
    controller = Controller(Mixture(parts), update_every=4, lag=2)
    model = runs.model()
    controller.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    run = Logger()
    for (inputs, targets, _), draw in controller.loader(12, steps=20).with_draws():
        losses = F.cross_entropy(model(inputs), targets, reduction="none")
        controller.loss(losses, draw=draw).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        if controller.completed % 10 == 0:
            values = {f"adaptmix/{tag}": value for tag, value in controller.scalars().items()}
            run.log(values, step=controller.completed)
    assert list(run.logged) == [10, 20]
    last = run.logged[20]
    shares = [last[f"adaptmix/sampling_weight/{name}"] for name in ("c__", "web")]
    assert shares == pytest.approx(controller.weights.sampling.tolist())
    assert "adaptmix/predicted_gain" in last
    assert all(_MLFLOW.fullmatch(name) and type(value) is float for name, value in last.items())
    # The last slash groups them: each quantity is a section with one chart per domain.
    sections = {name.rpartition("/")[0] for name in last}
    assert {"adaptmix", "adaptmix/loss", "adaptmix/sampling_weight"} <= sections
