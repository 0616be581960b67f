"""Losses of shape (B, B): by mistake, or with as many tokens as rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmix import Controller, Mixture
from adaptmix.errors import LossShapeWarning
from tests import runs

B = 6
Loss = Callable[[Tensor], Tensor]

generator = torch.Generator().manual_seed(0)
ONE, MANY = (torch.randn(*shape, generator=generator) for shape in ((B,), (B, B)))
CLASSES = torch.randint(4, (B, B), generator=generator)
COLUMN, HEAD = nn.Linear(5, 1), nn.Linear(5, B)
TOKENS, TEMPERATURE = nn.Linear(5, B * 4), nn.Parameter(torch.ones(()))
POSITIONS = nn.Parameter(torch.zeros(B))


def seen(loss: Loss) -> list[str]:
    """Give a run its first losses, and return what it warns of."""
    controller = Controller(Mixture({"a": runs.dataset(12, seed=0, scale=1.0)}), policy="static")
    next(iter(controller.loader(B, steps=2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        controller.loss(loss(torch.randn(B, 5, generator=generator)))
    return [str(warning.message) for warning in caught if warning.category is LossShapeWarning]


MISTAKES: dict[str, Loss] = {
    "squares": lambda x: (COLUMN(x) - ONE) ** 2,
    "scaled": lambda x: 0.5 * (TEMPERATURE * COLUMN(x) - ONE).abs(),
    "expanded": lambda x: F.huber_loss(COLUMN(x).expand(B, B), ONE.expand(B, B), reduction="none"),
    "deep": lambda x: F.softplus(-ONE * COLUMN(torch.tanh(x))).pow(2).clamp(min=0.1),
}
HONEST: dict[str, Loss] = {
    "several outputs": lambda x: (HEAD(x) - MANY) ** 2,
    "tokens": lambda x: F.cross_entropy(
        TOKENS(x).view(B, B, 4).transpose(1, 2), CLASSES, reduction="none"
    ),
    "factors of rows": lambda x: COLUMN(x).sigmoid() * (HEAD(x) - MANY) ** 2,
    "a matrix of its own": lambda x: (COLUMN(x) @ COLUMN.weight[:, :1].expand(1, B) - MANY) ** 2,
    "offsets of places": lambda x: (HEAD(x) + POSITIONS - MANY) ** 2,
    "the same shape": lambda x: (COLUMN(x).squeeze(1) - ONE) ** 2,
    "columns": lambda x: (COLUMN(x) - ONE.unsqueeze(1)) ** 2,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_predictions_that_meet_all_rows_targets_are_named(name: str) -> None:
    (message,) = seen(MISTAKES[name])
    assert "(6, 6) were broadcast from predictions of shape (6, 1)" in message
    assert "predictions.squeeze(1)" in message


@pytest.mark.parametrize("name", HONEST)
def test_as_many_tokens_as_rows_are_fine(name: str) -> None:
    assert not seen(HONEST[name])


def test_predictions_of_all_rows_against_each_target_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got shape \(6, 6\), broadcast .* shape \(6,\)"):
        seen(lambda x: (COLUMN(x).squeeze(1) - ONE.unsqueeze(1)) ** 2)


def test_losses_without_a_graph_are_let_through() -> None:
    assert not seen(lambda x: (HEAD(x).detach() - MANY).square())
