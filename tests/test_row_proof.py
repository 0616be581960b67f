"""A training loop whose rows move, or whose losses come to compare rows, is stopped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptmix import Controller
from adaptmix._row_proof import now_and_then
from adaptmix.errors import ObjectiveError
from tests import runs


def train(losses: Any, *, steps: int = 6, mode: str = "adapt", **options: Any) -> list[Any]:
    """Train on losses of (model, inputs, targets, step); return the hooks that are left."""
    net = runs.model()
    controller = Controller(runs.mixture(), net, mode=mode, measure_every=4, **options)
    hooks = {name: len(module._forward_pre_hooks) for name, module in net.named_modules()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    for step, (inputs, targets, _) in enumerate(controller.loader(12, steps=steps)):
        controller.loss(losses(net, inputs, targets, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    return [n for n, module in net.named_modules() if len(module._forward_pre_hooks) > hooks[n]]


def rows(net: Any, inputs: Tensor, targets: Tensor, step: int) -> Tensor:  # noqa: ARG001
    """Losses as they should be."""
    return F.cross_entropy(net(inputs), targets, reduction="none")


def moved(net: Any, inputs: Tensor, targets: Tensor, step: int) -> Tensor:
    """Losses of rows in another order."""
    return rows(net, inputs.flip(0), targets.flip(0), step)


def compared(net: Any, inputs: Tensor, targets: Tensor, step: int) -> Tensor:
    """Losses that compare rows from the third step on."""
    logits = net(inputs)
    each = F.cross_entropy(logits, targets, reduction="none")
    return each + (logits - logits.mean(0)).square().sum(1) if step > 1 else each


def test_hooks_are_taken_off() -> None:
    assert train(rows) == []


def test_rows_that_move_are_refused() -> None:
    with pytest.raises(ObjectiveError, match="The training loop must keep rows in the order"):
        train(moved)


def test_losses_that_come_to_compare_rows_are_refused() -> None:
    with pytest.raises(ObjectiveError, match="computed from the model's outputs for that row"):
        train(compared)


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RowOrderWarning")
@pytest.mark.parametrize("losses", [moved, compared])
def test_observing_refuses_nothing(losses: Any) -> None:
    train(losses, mode="observe")


def test_looked_at_more_and_more_seldom() -> None:
    assert [n for n in range(1, 300) if now_and_then(n)] == [1, 4, 16, 64, 256]
