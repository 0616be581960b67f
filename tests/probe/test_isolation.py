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


class Sorted(nn.Module):
    """Puts rows into another order for its layers, and logits back."""

    def __init__(self, *, sort: bool) -> None:
        super().__init__()
        self.net, self.sort = runs.model(), sort

    def forward(self, x: Tensor) -> Tensor:
        if not self.sort:
            return self.net(x)  # type: ignore[no-any-return]
        order = x[:, 0].argsort()
        logits: Tensor = self.net(x[order])[order.argsort()]
        return logits


def train(*, sort: bool) -> tuple[Controller, list[Tensor]]:
    controller = Controller(runs.mixture(), policy="variance_aware", update_every=2, lag=2)
    net, gradients = Sorted(sort=sort), []
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
        controller, _ = train(sort=True)
    assert controller.weights.sampling.tolist() == controller.mixture.importance.tolist()


def test_rows_in_order_are_not_doubted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller, _ = train(sort=False)
    assert controller.weights.sampling.tolist() != controller.mixture.importance.tolist()


def test_the_objective_is_right_in_both() -> None:
    """Until shares move: the same rows, in the same order, with the same factors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left, right = train(sort=True)[1], train(sort=False)[1]
    for a, b in zip(left[:3], right[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
