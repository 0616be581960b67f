"""The controller refuses what cannot be right, by name.

Also tests ``_settings.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptmix import Controller, DomainStats, Weights
from adaptmix.errors import (
    LagError,
    StateError,
)
from tests import runs
from tests.runs import started

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")


def test_a_policy_of_another_importance_is_an_error() -> None:
    class Even:
        requires = frozenset({"loss_mean"})

        def init(self, domains: Any, run: Any) -> dict[str, Any]:
            return {}

        def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, Any]:
            return Weights.proportional(np.full(3, 1 / 3)), state

    controller = Controller(runs.mixture(), policy=Even(), update_every=2)
    message = (
        r"^policy=.*Even must return weights with the importance of the run, \[0\.54.*got \[0\.3"
    )
    with pytest.raises(ValueError, match=message):
        runs.Run(controller, runs.model(), steps=12).train()
    assert controller.weights.importance.tolist() == controller.mixture.importance.tolist()


def test_refuses_what_cannot_be_right() -> None:
    controller, draw = started(Controller(runs.mixture(), policy="static"))
    other, _ = started(Controller(runs.mixture(), policy="static"))
    losses = torch.ones(8, requires_grad=True)
    with pytest.raises(ValueError, match=r"step\(\) must follow a call of loss"):
        controller.step()
    with pytest.raises(ValueError, match="another controller"):
        other.loss(losses, draw=draw)
    with pytest.raises(TypeError, match="draw must be"):
        controller.loss(losses, draw="draw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'got a scalar.*reduction="none"'):
        controller.loss(losses.mean(), draw=draw)
    with pytest.raises(ValueError, match="8 rows first; got shape"):
        controller.loss(torch.ones(7), draw=draw)
    with pytest.raises(ValueError, match="one term per row"):
        controller.loss(losses, draw=draw, noise=torch.ones(7))
    controller.loss(losses, draw=draw)
    with pytest.raises(ValueError, match="draw must be number 1"):
        controller.loss(losses, draw=draw)
    with pytest.raises(ValueError, match="must be called between optimizer steps"):
        controller.state_dict()


def test_refuses_a_backward_that_the_probe_does_not_see() -> None:
    controller = Controller(runs.mixture(), update_every=1)
    watched, trained = runs.model(), runs.model()
    controller.watch(watched)
    with pytest.raises(ValueError, match="probe saw no gradient"):
        runs.Run(controller, trained).train()


def test_refuses_loaders_that_run_ahead() -> None:
    controller = Controller(runs.mixture(), lag=1)
    with pytest.raises(LagError, match="lag must be at least 4"):
        controller.loader(8, num_workers=2)
    loader = controller.loader(8, steps=10)
    with pytest.raises(LagError, match="step 2 was drawn and step 0 was next"):
        list(loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "best"}, "policy must be one of variance_aware"),
        ({"policy": runs.Run}, "policy must be a name, or an object"),
        ({"update_every": 0}, "update_every must be an integer >= 1"),
        ({"measure_every": 2.5}, "measure_every must be an integer"),
        ({"lag": -1}, "lag must be an integer >= 0"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"unit": "row"}, "unit must be one of sample, token"),
        ({"mode": "off"}, "mode must be one of adapt, observe"),
        ({"half_life": 0.0}, "half_life must be finite and in"),
        ({"tokens_per_row": {"a": 1.5}}, 'tokens_per_row must be at most 1 with unit="sample"'),
        ({"unit": "token", "tokens_per_row": {"a": 1.0}}, "must name exactly the domains a, b, c"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Controller(runs.mixture(), **arguments)


def test_bad_loaders_and_mixtures_are_named() -> None:
    with pytest.raises(TypeError, match=r"mixture must be .*; got dict"):
        Controller({"a": [1]})  # type: ignore[arg-type]
    controller = Controller(runs.mixture())
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1; got 0"):
        controller.loader(0)
    with pytest.raises(TypeError, match="shuffle must not be given"):
        controller.loader(4, shuffle=True)
    with pytest.raises(ValueError, match="model must be watched once"):
        net = runs.model()
        controller.watch(net)
        controller.watch(net)


def test_a_state_fits_only_its_own_run() -> None:
    controller = Controller(runs.mixture(), policy="static")
    runs.Run(controller, runs.model(), steps=4, batch_size=8).train()
    state = controller.state_dict()
    with pytest.raises(StateError, match="seed must be what the saved run had: 0; got 1"):
        Controller(runs.mixture(), policy="static", seed=1).load_state_dict(state)
    with pytest.raises(StateError, match=r"^policy\.class must be what .*Static'; got"):
        Controller(runs.mixture(), policy="fgls", holdout=None).load_state_dict(state)
    with pytest.raises(StateError, match=r"^plan\.completed must be in the state"):
        Controller(runs.mixture(), policy="static").load_state_dict({**state, "plan": {}})
    resumed = Controller(runs.mixture(), policy="static")
    resumed.load_state_dict(state)
    with pytest.raises(StateError, match="must stay 8 in a run; got 4 × 1 × 1 = 4"):
        resumed.loader(4)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (torch.arange(8.0), TypeError, "samples must be a tensor of integers; got torch.float32"),
        (torch.zeros(2, 8).long(), ValueError, r"samples must have shape \(R,\)"),
        (torch.arange(9), ValueError, r"in \[0, 8\); got 0 to 8"),
    ],
)
def test_samples_are_checked(samples: Tensor, error: type[Exception], message: str) -> None:
    controller = Controller(runs.mixture(), policy="static")
    _, draw = next(iter(controller.loader(8).with_draws()))
    with pytest.raises(error, match=message):
        controller.loss(torch.ones(8, requires_grad=True), draw=draw, samples=samples)
