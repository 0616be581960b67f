"""Through the controller, gradient statistics are those of each row's own, unweighted loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptmix import Controller, policies
from adaptmix.probe.estimators._gradients import GradientSums
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.RowLengthWarning")

STATIC = policies.Static(
    sampling={"a": 0.2, "b": 0.3, "c": 0.5}, loss={"a": 0.5, "b": 2.0, "c": 1.0}
)
LENGTH = 5


def token_losses(net: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """(B, LENGTH) losses: of each row repeated with its features rolled."""
    rolled = torch.stack([inputs.roll(shift, 1) for shift in range(LENGTH)], dim=1)
    targets = targets.unsqueeze(1).expand(-1, LENGTH)
    return F.cross_entropy(net(rolled).flatten(0, 1), targets.flatten(), reduction="none").view(
        len(inputs), LENGTH
    )


def row_loss(losses: Tensor, mask: Tensor, unit: str) -> Tensor:
    total = (losses * mask).sum(1)
    return total if unit == "token" else total / mask.sum(1)


@pytest.mark.parametrize("unit", ["sample", "token"])
@pytest.mark.parametrize("mode", ["adapt", "observe"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("estimator", ["exact", "sketch"])
@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_neither_weights_nor_reduction_nor_accumulation_nor_scale_enter(
    unit: str, mode: str, accumulation: int, estimator: str, scale: float
) -> None:
    """The layers are so small that the sketch keeps all of them."""
    controller = Controller(
        runs.mixture(),
        policy=STATIC,
        update_every=1,
        measure_every=1,
        lag=0,
        unit=unit,
        mode=mode,
        estimator=estimator,
        tokens_per_row=dict.fromkeys("abc", (LENGTH + 1) / 2) if unit == "token" else None,
    )
    net = runs.model()
    controller.watch(net)
    want_count = torch.zeros(3, dtype=torch.float64)
    want_square = torch.zeros(3, dtype=torch.float64)
    found: list[GradientSums] = []
    probe = controller._measurements.probe
    assert probe is not None
    collect = probe.collect

    def spy() -> GradientSums | None:
        sums = collect()
        assert sums is not None
        found.append(sums)
        return sums

    probe.collect = spy  # type: ignore[method-assign]
    loader = iter(controller.loader(12, accumulation=accumulation, steps=3).with_draws())
    for step in range(2):
        want_count.zero_()
        want_square.zero_()
        sums: dict[int, Tensor] = {}
        for _ in range(accumulation):
            (inputs, targets, _), draw = next(loader)
            mask = torch.arange(LENGTH) <= torch.arange(len(inputs)).unsqueeze(1) % LENGTH
            losses = token_losses(net, inputs, targets)
            (scale * controller.loss(losses, draw=draw, mask=mask)).backward()
            each = row_loss(token_losses(net, inputs, targets), mask, unit)
            for loss, domain in zip(each, draw.domains.tolist(), strict=True):
                parts = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
                gradient = torch.cat([part.flatten() for part in parts])
                want_count[domain] += 1
                want_square[domain] += gradient.square().sum()
                sums[domain] = sums.get(domain, torch.zeros_like(gradient)) + gradient
        controller.step()
        torch.testing.assert_close(found[step].count, want_count)
        torch.testing.assert_close(found[step].square, want_square)
        own = torch.stack([sums[domain].square().sum() for domain in range(3)])
        torch.testing.assert_close(found[step].gram().diagonal(), own)
