"""What the probe sees of common architectures, against autograd sample by sample.

Also tests ``probe/_by_function.py``, ``probe/_follower.py``, ``probe/_functions.py``,
``probe/_operations.py`` and ``probe/_tracked.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adaptmix.probe._probe import GradientProbe
from adaptmix.probe.estimators._gradients import GradientSums
from tests.probe.cases import assert_same, by_sample

pytest.importorskip("transformers")

from tests.probe.architectures import ARCHITECTURES
from tests.probe.building import B, Inputs, losses

# Of its own making, about its own names.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

K = 2
DOMAINS = torch.tensor([0, 1, 0])
FACTORS = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)


def expected(probe: GradientProbe, model: nn.Module, inputs: Inputs) -> GradientSums:
    """The sums by autograd, one sample after the other."""

    def loss(j: int) -> Tensor:
        return losses(model, {name: value[j : j + 1] for name, value in inputs.items()}).sum()

    return by_sample(probe, model, loss, DOMAINS, K)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_seen_and_right(name: str, estimator: str) -> None:
    build, data = ARCHITECTURES[name]
    torch.manual_seed(0)
    model, inputs = build(), data()
    probe = GradientProbe(model, K, estimator=estimator, seed=3)
    probe.attach()
    probe.arm(True, step=0)
    each = losses(model, inputs)
    loss = FACTORS @ each
    probe.expect(DOMAINS, FACTORS, loss, values=each)
    loss.backward()
    got = probe.collect()
    probe.detach()
    mass = {
        key: float(p.grad.square().sum())
        for key, p in model.named_parameters()
        if p.grad is not None
    }
    unseen = probe.coverage.unseen
    seen = sum(value for key, value in mass.items() if key.rpartition(".")[0] not in unseen)
    assert seen >= 0.98 * sum(mass.values()), unseen
    assert len(DOMAINS) == B
    # The libraries' own normalisation computes in float32.
    assert_same(got, expected(probe, model, inputs), rtol=2e-4)
