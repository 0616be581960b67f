"""Rows that enter a model in another order than the batch has them in are found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adaptmix.errors import ObjectiveError
from adaptmix.probe._entry import refusing_moved_rows

B = 12


def run(model: nn.Module, x: Tensor, inputs: Tensor) -> None:
    with refusing_moved_rows(model, [torch.arange(B), x], B):
        model(inputs)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def test_rows_in_another_order() -> None:
    x = torch.randn(B, 4)
    for order in (x[:, 0].argsort(), torch.arange(B).flip(0), torch.arange(B).roll(1)):
        with pytest.raises(
            ObjectiveError, match="training_step must keep rows in the order of the"
        ):
            run(model(), x, x[order])
    with pytest.raises(ObjectiveError, match="module 'Sequential' got them in another"):
        run(model(), x, x.flip(0))


def test_ids_of_tokens_in_another_order() -> None:
    ids = torch.randint(50, (B, 9))
    embedding = nn.Sequential(nn.Embedding(50, 4))
    run(embedding, ids, ids)
    with pytest.raises(ObjectiveError, match="in the order of the batch"):
        run(embedding, ids, ids[torch.randperm(B, generator=torch.Generator().manual_seed(0))])


def test_what_is_no_row_of_the_batch_shows_nothing() -> None:
    x = torch.randn(B, 4)
    run(model(), x, x)
    run(model(), x, 2.0 * x.flip(0))  # changed before any module sees it
    run(model(), torch.ones(B, 4), torch.ones(B, 4))
    run(model(), x, torch.randn(B + 1, 4))


def test_rows_that_some_change_in_their_places_have_not_moved() -> None:
    """As where conditions are dropped at random."""
    x = torch.randn(B, 4)
    dropped = x.clone()
    dropped[9:] = 0.0
    run(model(), x, dropped)
    for odd in (x.to_sparse(), x.to(torch.complex64), torch.ones(B, 0)):
        with refusing_moved_rows(model(), [odd, x], B):
            pass


def test_hooks_are_taken_off() -> None:
    net, x = model(), torch.randn(B, 4)
    with pytest.raises(ObjectiveError):
        run(net, x, x.flip(0))
    with pytest.raises(ValueError, match="of the user"), refusing_moved_rows(net, [x], B):
        raise ValueError("of the user")
    assert not any(module._forward_pre_hooks for module in net.modules())
