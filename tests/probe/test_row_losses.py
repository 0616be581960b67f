"""Losses of rows that are computed from the outputs for other rows are found."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptmix.errors import ObjectiveError
from adaptmix.probe._row_losses import RowLosses

B = 8


def check(losses: Any, *, model: nn.Module | None = None, samples: Tensor | None = None) -> None:
    """Judge losses of a model's outputs for B rows, or as many as there are samples."""
    torch.manual_seed(0)
    net = nn.Linear(3, 4) if model is None else model
    proof = RowLosses(net)
    x = torch.randn(B if samples is None else len(samples), 3)
    proof.check(losses(net(x)), None, samples, nullcontext)
    assert not net._forward_hooks


@pytest.mark.parametrize(
    "losses",
    [
        lambda z: z.square().sum(1),
        lambda z: z.square(),
        lambda z: z.square().sum(1) + z.detach().mean(),
        lambda z: nn.functional.cross_entropy(z, torch.zeros(B).long(), reduction="none"),
        lambda z: nn.BatchNorm1d(4)(z).square().sum(1),
        lambda z: z.detach().square().sum(1),
    ],
)
def test_losses_of_rows_alone(losses: Any) -> None:
    check(losses)


@pytest.mark.parametrize(
    "losses",
    [
        lambda z: (z - z.mean(0)).square().sum(1),
        lambda z: (z @ z.T).logsumexp(1),
        lambda z: z.cumsum(0).sum(1),
        lambda z: z.flip(0).sum(1),
        lambda z: torch.relu(z[:, :1] - z[:, 0]),
    ],
)
def test_losses_that_other_rows_change(losses: Any) -> None:
    with pytest.raises(ObjectiveError, match="one entry per row"):
        check(losses)


def test_rows_of_a_sample_belong_together() -> None:
    two = torch.arange(B).repeat(2)
    check(lambda z: z.reshape(2, B, 4).square().sum((0, 2)), samples=two)
    check(lambda z: z[:B].sum(1) - z[B:].sum(1), samples=two)
    with pytest.raises(ObjectiveError, match="outputs for other rows"):
        check(lambda z: z.reshape(B, 2, 4).square().sum((1, 2)), samples=two)


def test_a_dim_that_may_be_another_is_left_alone() -> None:
    """Time first, with as many times as rows: the loss reads the last time."""
    last = nn.Sequential(nn.Linear(3, B * 2), nn.Unflatten(1, (B, 2)))
    check(lambda z: z.sum(2)[-1], model=last)


def test_copies_of_the_model_hold_no_outputs() -> None:
    net = nn.Linear(3, 4)
    proof = RowLosses(net)
    losses = net(torch.randn(B, 3)).sum(1)
    copy.deepcopy(net)(torch.randn(B, 3))
    proof.check(losses, None, None, nullcontext)


def test_outputs_in_any_structure() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"hidden": (self.layer(x), None), "number": 3}

    with pytest.raises(ObjectiveError):
        check(lambda out: out["hidden"][0].softmax(0).sum(1), model=Named())
