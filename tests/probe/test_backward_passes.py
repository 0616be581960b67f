"""Training that differentiates more than once in a step, as penalties and attacks do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptmix.probe._probe import GradientProbe
from tests.probe.cases import (
    CASES,
    DOMAINS,
    FACTORS,
    assert_same,
    attached,
    losses,
    mlp,
    reference,
    transformer,
)

Around = Callable[[nn.Module, Tensor], None]
"""(model, loss): a step's backward passes; the gradient that the optimizer sees is the loss's."""


def norm_first(model: nn.Module, loss: Tensor) -> None:
    torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    loss.backward()


def head_first(model: nn.Module, loss: Tensor) -> None:
    """Passes the layers above the head's input only."""
    last = [*model.parameters()][-1]
    torch.autograd.grad(loss, last, retain_graph=True)
    loss.backward()


def head_afterwards(model: nn.Module, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    torch.autograd.grad(loss, [*model.parameters()][-1])


def twice(_: nn.Module, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    loss.backward()


def thrice(_: nn.Module, loss: Tensor) -> None:
    for _round in range(2):
        loss.backward(retain_graph=True)
    (3.0 * loss).backward()


def another_loss(_: nn.Module, loss: Tensor) -> None:
    """Of the same activations, in a backward pass of its own."""
    loss.backward(retain_graph=True)
    node: Any = loss.grad_fn
    shared = node.next_functions[1][0]
    edge = torch.autograd.graph.GradientEdge(shared, 0)
    torch.autograd.backward(edge, torch.ones(len(DOMAINS), dtype=torch.float64))


WAYS: dict[str, Around] = {
    "norm first": norm_first,
    "head first": head_first,
    "head afterwards": head_afterwards,
    "twice": twice,
    "thrice": thrice,
    "another loss": another_loss,
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_sums_are_those_of_one_backward_pass(name: str, kind: str, estimator: str) -> None:
    """0.1 raised IndexError: pop from empty list."""
    build, data = CASES[kind]
    torch.manual_seed(0)
    model, (inputs, targets) = build().double(), data()
    probe = attached(model, estimator)
    want = reference(probe, model, inputs, targets)
    probe.arm(True, step=0)
    loss = FACTORS @ losses(model(inputs), targets)
    probe.expect(DOMAINS, FACTORS, loss)
    WAYS[name](model, loss)
    assert_same(probe.collect(), want)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_gradients_of_the_user_before_the_loss_change_nothing(kind: str, estimator: str) -> None:
    """Saliency, or the norm of a gradient, before the loss is known."""
    build, data = CASES[kind]
    torch.manual_seed(0)
    model, (inputs, targets) = build().double(), data()
    probe = attached(model, estimator)
    want = reference(probe, model, inputs, targets)
    probe.arm(True, step=0)
    output = model(inputs)
    torch.autograd.grad(output.square().sum(), [*model.parameters()], retain_graph=True)
    loss = FACTORS @ losses(output, targets)
    probe.expect(DOMAINS, FACTORS, loss)
    loss.backward()
    assert_same(probe.collect(), want)


def of_inputs(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample's gradient with respect to its inputs."""
    inputs = inputs.clone().requires_grad_()
    each = losses(model(inputs), targets)
    (gradient,) = torch.autograd.grad(each.sum(), inputs, create_graph=True)
    return each, gradient.square().sum(1)


def inside(model: nn.Module, inputs: Tensor, targets: Tensor, probe: GradientProbe | None) -> None:
    each, penalties = of_inputs(model, inputs, targets)
    loss = FACTORS @ (each + penalties)
    if probe is not None:
        probe.expect(DOMAINS, FACTORS, loss)
    loss.backward()


def beside(model: nn.Module, inputs: Tensor, targets: Tensor, probe: GradientProbe | None) -> None:
    each, penalties = of_inputs(model, inputs, targets)
    loss = FACTORS @ each
    if probe is not None:
        probe.expect(DOMAINS, FACTORS, loss)
    (loss + penalties.sum()).backward()


def of_parameters(
    model: nn.Module, inputs: Tensor, targets: Tensor, probe: GradientProbe | None
) -> None:
    loss = FACTORS @ losses(model(inputs), targets)
    if probe is not None:
        probe.expect(DOMAINS, FACTORS, loss)
    first = torch.autograd.grad(loss, [*model.parameters()], create_graph=True)
    (loss + torch.stack([gradient.square().sum() for gradient in first]).sum()).backward()


@pytest.mark.parametrize("step", [inside, beside, of_parameters])
def test_steps_with_a_gradient_penalty_are_left_out_and_named(
    step: Callable[..., None], estimator: str
) -> None:
    """The parts of samples cannot be told apart; the gradient stays what it is."""
    torch.manual_seed(0)
    model, (inputs, targets) = mlp().double(), CASES["mlp"][1]()
    step(model, inputs, targets, None)
    wanted = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    step(model, inputs, targets, probe)
    sums = probe.collect()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if parameter.grad is not None and gradient is not None:
            assert parameter.grad.equal(gradient)
    assert sums is not None
    assert not sums.count.any() and not sums.square.any() and not sums.mass[0]
    assert sums.mass[1] > 0.0
    assert "differentiated again (create_graph=True)" in probe.coverage.describe()


def attacked(model: Any, inputs: Tensor, targets: Tensor) -> None:
    """FGM: a second forward and backward pass with words moved along the gradient."""
    words = model.stem.words.weight
    assert words.grad is not None
    moved = 0.1 * words.grad / words.grad.norm()
    words.data += moved
    losses(model(inputs), targets).mean().backward()
    words.data -= moved


@pytest.mark.parametrize("parts", [1, 3])
def test_an_attack_after_the_backward_pass_changes_nothing(parts: int, estimator: str) -> None:
    torch.manual_seed(0)
    model, (inputs, targets) = transformer().double(), CASES["transformer"][1]()
    probe = attached(model, estimator)
    want = reference(probe, model, inputs, targets)
    probe.arm(True, step=0)
    for part in torch.arange(len(DOMAINS)).chunk(parts):
        loss = FACTORS[part] @ losses(model(inputs[part]), targets[part])
        probe.expect(DOMAINS[part], FACTORS[part], loss)
        loss.backward()
        attacked(model, inputs[part], targets[part])
    assert_same(probe.collect(), want)
