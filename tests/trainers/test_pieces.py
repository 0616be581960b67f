"""Functions that are linear in pieces: which of them couple rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptmix.trainers._additivity import couplings, loss_gradients
from adaptmix.trainers._inputs import find_loss_inputs
from adaptmix.trainers._pieces import coupled_pieces
from tests.trainers.test_additivity import ROWS, TARGETS, parts

LOSSES: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "hinge on the mean": (False, lambda z: F.cross_entropy(z, TARGETS) + F.relu(z.mean())),
    "hinge that is not active": (False, lambda z: z.sum() + F.relu(z.mean() - 1e3)),
    "clamped mean": (False, lambda z: F.cross_entropy(z, TARGETS).clamp(max=50.0)),
    "absolute mean": (False, lambda z: z.mean(0).abs().sum()),
    "ranking in pairs": (
        False,
        lambda z: F.margin_ranking_loss(z[:3, 0], z[3:, 0], torch.ones(3), margin=0.5),
    ),
    "all pairs": (False, lambda z: F.relu(z[:, None, 0] - z[None, :, 1]).mean()),
    "hardest rows": (
        False,
        lambda z: F.cross_entropy(z, TARGETS, reduction="none").topk(3)[0].sum(),
    ),
    "worst row": (False, lambda z: z.logsumexp(1).max()),
    "worst row along a dim": (False, lambda z: z.max(0)[0].sum()),
    "median row": (False, lambda z: z.logsumexp(1).median()),
    "larger of two rows": (False, lambda z: torch.maximum(z[:3], z[3:]).sum()),
    "hinge of each row": (True, lambda z: F.relu(1.0 - z[torch.arange(ROWS), TARGETS]).mean()),
    "best class of each row": (True, lambda z: z.max(1)[0].mean()),
    "classes sorted in each row": (True, lambda z: (z.sort(-1)[0] * torch.arange(3.0)).sum()),
    "distance of each row": (True, lambda z: F.l1_loss(z, torch.zeros_like(z))),
    "smooth distance": (True, lambda z: F.smooth_l1_loss(z, torch.zeros_like(z))),
    "larger of two classes": (True, lambda z: torch.maximum(z[:, 0], z[:, 1]).sum()),
    "cross-entropy": (True, lambda z: F.cross_entropy(z, TARGETS)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_pieces_that_couple_rows_are_told_from_others(name: str, seed: int) -> None:
    additive, function = LOSSES[name]
    body, head, x = parts()
    z = head(torch.tanh(body(x)))
    loss = function(z)
    loss_inputs = find_loss_inputs(loss, [z])
    found = coupled_pieces(loss_inputs, samples=ROWS, seed=seed)
    assert (found is None) == additive, found
    first = loss_gradients(loss, loss_inputs, twice=True)
    assert (couplings(loss_inputs, first, samples=ROWS, seed=seed) is None) == additive
    loss.backward()  # the graph is still there


def test_rows_in_blocks_are_one_sample() -> None:
    z = torch.randn(2 * ROWS, generator=torch.Generator().manual_seed(0)).requires_grad_() * 1.0
    chosen, rejected = z.chunk(2)
    loss = F.relu(1.0 - (chosen - rejected)).mean()
    assert coupled_pieces(find_loss_inputs(loss, [z]), samples=ROWS, seed=0) is None
    other = F.relu(1.0 - (chosen - rejected.roll(1))).mean()
    assert coupled_pieces(find_loss_inputs(other, [z]), samples=ROWS, seed=0) is not None


def test_penalties_on_parameters_are_no_pieces_of_rows() -> None:
    body, head, x = parts()
    z = head(torch.tanh(body(x)))
    loss = z.sum() + head.weight.abs().sum() + F.relu(head.weight.sum())
    assert coupled_pieces(find_loss_inputs(loss, [z]), samples=ROWS, seed=0) is None
