"""Weighting rows at a head is weighting their losses; a weighted loss arrives as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmix import Controller, policies
from adaptmix.errors import ObjectiveError
from adaptmix.trainers import BackwardProof, WeightedHead, scale_rows
from tests import runs

STATIC = policies.Static(
    sampling={"a": 0.2, "b": 0.3, "c": 0.5}, loss={"a": 0.5, "b": 2.0, "c": 1.0}
)


def gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def test_scaled_rows_are_weighted_losses() -> None:
    net, inputs = runs.model(), torch.randn(5, runs.FEATURES, dtype=torch.float64)
    targets, factors = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])
    (F.cross_entropy(net(inputs), targets, reduction="none") @ factors.double()).backward()
    expected = gradient(net)
    net.zero_grad()
    logits = net(inputs)
    scaled = scale_rows(logits, factors)
    assert torch.equal(scaled, logits)
    F.cross_entropy(scaled, targets, reduction="sum").backward()
    torch.testing.assert_close(gradient(net), expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"5 rows first; got shape \(4, 4\)"):
        scale_rows(logits[:4], factors)


def test_a_mean_loss_weighted_at_its_head_is_the_objective() -> None:
    nets = [runs.model(), runs.model()]
    controllers = [
        Controller(runs.mixture(), policy=STATIC, lag=0, update_every=1) for _ in range(2)
    ]
    head = WeightedHead(nets[1], "2")
    loaders = [controller.loader(12, steps=5).with_draws() for controller in controllers]
    for controller in controllers:
        controller.watch(nets[controllers.index(controller)])
    for ((inputs, targets, _), draw), (_, same) in zip(*loaders, strict=True):
        losses = F.cross_entropy(nets[0](inputs), targets, reduction="none")
        controllers[0].loss(losses, draw=draw).backward()
        factors = controllers[1].multipliers(same)
        head.open(factors)
        loss = F.cross_entropy(nets[1](inputs), targets)
        head.close()
        controllers[1].observe(loss, draw=same, factors=factors / len(same))
        loss.backward()
        head.check_backward()
        torch.testing.assert_close(gradient(nets[1]), gradient(nets[0]), rtol=1e-12, atol=1e-14)
        for net, controller in zip(nets, controllers, strict=True):
            net.zero_grad()
            controller.step()
    ours, theirs = (controller.statistics for controller in controllers)
    torch.testing.assert_close(
        torch.from_numpy(ours.grad_var), torch.from_numpy(theirs.grad_var), rtol=1e-10, atol=0.0
    )
    assert theirs.seen.tolist() == ours.seen.tolist()
    assert not {"loss_mean", "loss_var"} & theirs.supplied()


def test_in_mode_observe_nothing_is_multiplied() -> None:
    controller = Controller(runs.mixture(), mode="observe")
    _, draw = next(iter(controller.loader(6, steps=2).with_draws()))
    assert controller.multipliers(draw).tolist() == [1.0] * 6


def test_a_head_that_does_not_see_the_loss_is_an_error() -> None:
    net = runs.model()
    with pytest.raises(ValueError, match="head must name a module of the model; got 'out'"):
        WeightedHead(net, "out")
    head = WeightedHead(net, "2")
    head.open(torch.ones(3))
    with pytest.raises(ObjectiveError, match=r"must be called once.*got 0 calls"):
        head.close()
    inputs = torch.randn(3, runs.FEATURES, dtype=torch.float64)
    head.open(torch.ones(3))
    net(inputs)
    net(inputs)
    with pytest.raises(ObjectiveError, match="got 2 calls"):
        head.close()
    head.open(torch.ones(3))
    net(inputs)
    head.close()
    with pytest.raises(ObjectiveError, match="got 0 gradients at its output"):
        head.check_backward()
    head.remove()
    head.remove()
    head.open(torch.ones(3))
    net(inputs).sum().backward()
    with pytest.raises(ObjectiveError, match="got 0 calls"):
        head.close()


def watched(proof: BackwardProof) -> torch.Tensor:
    loss = torch.ones((), requires_grad=True) * 2.0
    proof.watch(loss)
    return loss


@pytest.mark.parametrize("scale", [1.0, 512.0])
def test_losses_that_arrive_as_they_are(scale: float) -> None:
    proof = BackwardProof()
    for _ in range(2):
        (watched(proof) * scale).backward()
    proof.check(scale)
    with pytest.raises(ObjectiveError, match="times the stated loss"):
        proof.check(2.0 * scale)


def test_a_loss_that_was_not_differentiated() -> None:
    proof = BackwardProof()
    watched(proof)
    with pytest.raises(ObjectiveError, match="no backward pass"):
        proof.check(1.0)


def test_a_loss_that_was_differentiated_twice() -> None:
    proof = BackwardProof()
    loss = watched(proof)
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(ObjectiveError, match=r"got \[1.0, 1.0\]"):
        proof.check(1.0)


@pytest.mark.parametrize(("divisor", "refused"), [(4.0, True), (1.0, False), (1.0 / 512, False)])
def test_a_loop_that_divides_by_the_accumulation_again(divisor: float, refused: bool) -> None:
    controller = Controller(runs.mixture(), policy="static")
    for _, draw in controller.loader(3, accumulation=4, steps=1).with_draws():
        losses = torch.ones(len(draw), requires_grad=True)
        (controller.loss(losses, draw=draw) / divisor).backward()
    if refused:
        with pytest.raises(ObjectiveError, match=r"accumulation of 4.*already; got 0.25 times"):
            controller.step()
    else:
        controller.step()
