"""Rows that a model has in another order than their losses are found."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmix import Controller
from adaptmix.errors import RowOrderWarning
from tests import runs


class Turned(nn.Module):
    """Turns rows around for its layers, which is not followed, and back."""

    def __init__(self, *, turn: bool) -> None:
        super().__init__()
        self.net, self.turn = runs.model(), turn

    def forward(self, x: Tensor) -> Tensor:
        if not self.turn:
            return self.net(x)  # type: ignore[no-any-return]
        logits: Tensor = self.net(x.flip(0)).flip(0)
        return logits


def train(*, turn: bool) -> tuple[Controller, list[Tensor]]:
    controller = Controller(runs.mixture(), policy="variance_aware", update_every=2, lag=2)
    net, gradients = Turned(turn=turn), []
    controller.watch(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for (inputs, targets, _), draw in controller.loader(24, steps=12).with_draws():
        losses = F.cross_entropy(net(inputs), targets, reduction="none")
        controller.loss(losses, draw=draw).backward()
        gradients.append(runs.parameters(net))
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    return controller, gradients


def test_shares_are_not_moved_on_other_rows_statistics() -> None:
    with pytest.warns(RowOrderWarning, match="rows are put into another order inside the model"):
        controller, _ = train(turn=True)
    assert controller.weights.sampling.tolist() == controller.mixture.importance.tolist()


def test_rows_in_order_are_not_doubted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller, _ = train(turn=False)
    assert controller.weights.sampling.tolist() != controller.mixture.importance.tolist()


def test_the_objective_is_right_in_both() -> None:
    """Until shares move: the same rows, in the same order, with the same factors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left, right = train(turn=True)[1], train(turn=False)[1]
    for a, b in zip(left[:3], right[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
