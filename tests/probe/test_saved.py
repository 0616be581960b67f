"""Proofs differentiate a graph before training does; what its functions saved stays as it was."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptmix import Segments
from adaptmix.probe._isolation import warn_unless_isolated
from adaptmix.probe._saved import restoring_saved
from tests.probe.cases import B, Stack, attached, losses, observe


class Overwriting(torch.autograd.Function):
    """A product whose backward pass writes into what it saved, as Liger's kernels do.

    ``data`` hides it from autograd, as a kernel's writing to memory does.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        ctx.other = b
        return a * b

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (a,), b, (gradient,) = ctx.saved_tensors, ctx.other, gradients
        by_a, by_b = gradient * b, gradient * a
        a.data.copy_(by_a)
        b.data.copy_(by_b)
        return a, b


FUSED: Any = Overwriting


class Gated(nn.Module):
    """Two layers whose outputs are multiplied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = FUSED.apply(self.gate(x), self.up(x))
        return result


def test_functions_get_back_what_a_pass_overwrote() -> None:
    a, b = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    shared = (a + 0.0).sum(1, keepdim=True).expand(3, 4)  # several entries of one number
    total = (FUSED.apply(a + 0.0, b + 0.0) * shared).sum()
    want = torch.autograd.grad((a * b * a.sum(1, keepdim=True)).sum(), [a, b])
    with restoring_saved([total]):
        torch.autograd.grad(total, [a, b], retain_graph=True)
    got = torch.autograd.grad(total, [a, b], retain_graph=True)
    torch.testing.assert_close(got, want)
    with pytest.raises(AssertionError):  # so that the test would show what it is for
        torch.testing.assert_close(torch.autograd.grad(total, [a, b]), want)


def test_a_proof_leaves_the_training_pass_as_it_is(estimator: str) -> None:
    model = Stack(nn.Linear(5, 8), [Gated(8)], nn.Linear(8, 4)).double()
    inputs, targets = torch.randn(B, 5).double(), torch.randint(4, (B,))
    losses(model(inputs), targets).sum().backward()
    want = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    probe = attached(model, estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert observe(probe, model, inputs, targets, factors=torch.ones(B).double()) is not None
    torch.testing.assert_close([p.grad for p in model.parameters()], want)
    assert not probe.coverage.unseen and not probe.coverage.doubted


def test_looking_for_samples_that_see_each_other_leaves_it_too() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Gated(3)).double()
    first: list[Tensor] = []
    model[0].register_forward_hook(lambda *call: first.append(call[2]))
    segments = Segments.from_positions(torch.tensor([[0, 1, 0, 1, 2]]))
    x = torch.randn(1, 5, 3).double()
    want = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    output = model(x)
    edge = torch.autograd.graph.get_gradient_edge(first[-1])
    assert warn_unless_isolated(segments, None, [(edge, first[-1].shape)], outputs=[output])
    got = torch.autograd.grad(output.square().sum(), list(model.parameters()))
    torch.testing.assert_close(got, want)
