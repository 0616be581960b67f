"""On a GPU a run is the one on the CPU, up to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptmix import Controller, Weights, noise
from tests import runs


def trained(device: str) -> tuple[Tensor, Weights]:
    """Parameters and weights after forty steps."""
    net = runs.model().to(device)
    controller = Controller(runs.mixture(), policy="joint", update_every=3, measure_every=1, lag=4)
    controller.watch(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    for (inputs, targets, _), draw in controller.loader(12, steps=40).with_draws():
        logits, classes = net(inputs.to(device)), targets.to(device)
        losses = F.cross_entropy(logits, classes, reduction="none")
        controller.loss(losses, draw=draw, noise=noise.softmax(logits, classes)).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    return runs.parameters(net).cpu(), controller.weights


@pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_run_is_the_one_on_the_cpu(device: str) -> None:
    parameters, weights = trained(device)
    want, expected = trained("cpu")
    torch.testing.assert_close(parameters, want, rtol=1e-8, atol=1e-10)
    assert weights.sampling == pytest.approx(expected.sampling, rel=1e-6)
    assert weights.loss == pytest.approx(expected.loss, rel=1e-6)
    assert abs(expected.sampling - expected.importance).max() > 0.01
