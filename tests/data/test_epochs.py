"""A run is as long as its epochs or its steps; with epochs, an iteration is one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adaptmix import Controller
from adaptmix.errors import ExhaustedLoaderWarning
from tests import runs

ROWS = sum(runs.SIZES)
STEPS = 7  # ⌈73 rows / 12⌉


def train(controller: Controller, loader: Any, *, stop: int | None = None) -> int:
    """Iterate once; returns the steps trained."""
    start = controller.completed
    for number, batch in enumerate(loader, start=1):
        controller.loss(torch.ones(len(batch[2]), requires_grad=True)).backward()
        if number % loader.sampler.layout.accumulation == 0:
            controller.step()
            if controller.completed == stop:
                break
    return controller.completed - start


def controller() -> Controller:
    return Controller(runs.mixture(), policy="static")


@pytest.mark.parametrize(("batch_size", "accumulation"), [(12, 1), (4, 3)])
def test_an_iteration_is_an_epoch(batch_size: int, accumulation: int) -> None:
    own = controller()
    loader = own.loader(batch_size, epochs=3, accumulation=accumulation)
    assert own.configuration["steps"] == 3 * STEPS
    for epoch in range(3):
        assert len(loader) == STEPS * accumulation
        assert train(own, loader) == STEPS
        assert own.completed == (epoch + 1) * STEPS
    with pytest.warns(ExhaustedLoaderWarning, match=r"^All 21 steps are trained.*epochs="):
        assert train(own, loader) == 0


def test_an_epoch_goes_on_where_it_was_left() -> None:
    own = controller()
    assert train(own, own.loader(12, epochs=2), stop=3) == 3
    again = controller()
    loader = again.loader(12, epochs=2)
    again.load_state_dict(own.state_dict())
    assert len(loader) == STEPS - 3
    assert [train(again, loader) for _ in range(2)] == [STEPS - 3, STEPS]


def test_one_epoch_is_the_default_and_steps_are_one_iteration() -> None:
    own = controller()
    assert train(own, own.loader(12)) == STEPS
    own = controller()
    assert train(own, own.loader(12, steps=10)) == 10
    assert len(controller().loader(100)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 2, "steps": 9}, "^epochs and steps must not both be given; got 2 and 9"),
        ({"epochs": 0}, "^epochs must be an integer >= 1; got 0"),
        ({"epochs": 1.5}, "^epochs must be an integer >= 1; got 1.5"),
    ],
)
def test_lengths_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        controller().loader(12, **options)
