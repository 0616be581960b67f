"""Where a loss meets the model, and whether it is a sum over rows, against autograd by hand.

Also tests ``trainers/_inputs.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmix.trainers._additivity import couplings, loss_gradients
from adaptmix.trainers._inputs import find_loss_inputs

ROWS = 6
Parts = tuple[nn.Linear, nn.Linear, Tensor]


def parts() -> Parts:
    torch.manual_seed(0)
    body, head = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    return body, head, torch.randn(ROWS, 4, dtype=torch.float64)


def test_rows_are_scaled_and_penalties_are_not() -> None:
    body, head, x = parts()
    targets = torch.arange(ROWS) % 3
    factors = torch.linspace(0.5, 3.0, ROWS, dtype=torch.float64)
    z = head(torch.tanh(body(x)))
    penalty = body.weight.square().sum() + head.weight.abs().sum()
    loss = F.cross_entropy(z, targets) + penalty
    loss_inputs = find_loss_inputs(loss, [z])
    assert loss_inputs.tensors == (z,)
    assert not loss_inputs.reads_rows_elsewhere()
    assert not loss_inputs.scaled_by_parameters()
    arrived = loss_inputs.scale(factors)
    parameters = [*body.parameters(), *head.parameters()]
    got = torch.autograd.grad(loss, parameters)
    assert arrived == [0]
    z = head(torch.tanh(body(x)))
    penalty = body.weight.square().sum() + head.weight.abs().sum()
    written = (factors * F.cross_entropy(z, targets, reduction="none")).mean() + penalty
    for mine, right in zip(got, torch.autograd.grad(written, parameters), strict=True):
        torch.testing.assert_close(mine, right)


def test_hooks_on_the_tensor_see_the_scaled_gradient() -> None:
    body, head, x = parts()
    z = head(body(x))
    seen: list[Tensor] = []
    z.register_hook(seen.append)
    loss = z.square().sum()
    find_loss_inputs(loss, [z]).scale(torch.full((ROWS,), 3.0))
    loss.backward()
    torch.testing.assert_close(seen[0], 6.0 * z.detach())


def test_casts_and_copies_are_looked_through() -> None:
    body, head, x = parts()
    z = head(body(x))
    shown = z.float().clone()
    loss = z.square().sum()
    assert find_loss_inputs(loss, [shown]).tensors == (shown,)
    assert find_loss_inputs(loss, [z.softmax(-1)]).tensors == ()


def test_blocks_of_rows_belong_to_samples_in_turn() -> None:
    z = torch.ones(2 * ROWS, requires_grad=True) * 1.0
    factors = torch.arange(1.0, ROWS + 1)
    leaf = torch.ones(2 * ROWS, requires_grad=True)
    z = leaf * 1.0
    loss = z.sum()
    find_loss_inputs(loss, [z]).scale(factors)
    loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == factors.repeat(2).tolist()


@pytest.mark.parametrize("which", ["second head", "hidden", "data by function", "upstream"])
def test_rows_that_are_read_elsewhere_are_noticed(which: str) -> None:
    body, head, x = parts()
    other = nn.Linear(5, 1).double()
    hidden = torch.tanh(body(x))
    z = head(hidden)
    rests: dict[str, Callable[[], Tensor]] = {
        "second head": lambda: other(hidden).square().mean(),
        "hidden": lambda: hidden.square().mean(),
        "data by function": lambda: F.linear(x, body.weight).square().mean(),
        "upstream": lambda: hidden.square().mean(),
    }
    rest = rests[which]()
    loss = z.square().mean() + rest
    candidates = [z, hidden] if which == "upstream" else [z]
    loss_inputs = find_loss_inputs(loss, candidates)
    assert loss_inputs.reads_rows_elsewhere() or loss_inputs.overlaps()
    assert find_loss_inputs(loss, [z], kept=[rest]).reads_rows_elsewhere() is False


@pytest.mark.parametrize("which", ["temperature", "layer", "uncertainty"])
def test_parameters_between_rows_and_loss_are_noticed(which: str) -> None:
    body, head, x = parts()
    scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    other = nn.Linear(3, 3).double()
    z = head(torch.tanh(body(x)))
    loss = {
        "temperature": lambda: (z * scale).logsumexp(-1).mean(),
        "layer": lambda: other(z).logsumexp(-1).mean(),
        "uncertainty": lambda: z.logsumexp(-1).mean() * (-scale).exp() + scale,
    }[which]()
    assert find_loss_inputs(loss, [z]).scaled_by_parameters()


TARGETS = torch.arange(ROWS) % 3
LOSSES: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "mean": (True, lambda z: F.cross_entropy(z, TARGETS)),
    "weighted mean": (True, lambda z: F.cross_entropy(z, TARGETS, weight=z.new_tensor([1, 5, 9]))),
    "focal": (True, lambda z: (1 - z.softmax(-1)[:, 0]).pow(2).mul(z[:, 1]).mean()),
    "linear": (True, lambda z: z.sum()),
    "contrastive": (False, lambda z: F.cross_entropy(z @ z.T, torch.arange(ROWS))),
    "root": (False, lambda z: z.square().mean().sqrt()),
    "weak": (False, lambda z: F.cross_entropy(z, TARGETS) + 1e-3 * z.mean().square()),
    "normalised": (False, lambda z: z.exp().sum() / z.square().sum()),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", LOSSES)
def test_sums_over_rows_are_told_from_others(name: str, seed: int) -> None:
    additive, function = LOSSES[name]
    body, head, x = parts()
    z = head(torch.tanh(body(x)))
    loss = function(z)
    loss_inputs = find_loss_inputs(loss, [z])
    first = loss_gradients(loss, loss_inputs, twice=True)
    assert (couplings(loss_inputs, first, samples=ROWS, seed=seed) is None) == additive
    loss.backward()  # the graph is still there
