"""The part of the gradient that the probe sees is measured, and decides whether weights move."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture
from adaptmix.errors import CoverageWarning, ObjectiveError
from tests.probe.cases import (
    B,
    attached,
    losses,
    observe,
)
from tests.probe.unusual import Hidden


class Loud(nn.Module):
    """Few parameters that nobody sees hold most of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.loud = nn.Linear(200, 8), Hidden(8)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(0.01 * x) + self.loud(30.0 * torch.ones_like(x[:, :8]))
        return output


@pytest.mark.parametrize("parts", [1, 3])
def test_what_is_seen_of_the_gradient_is_measured_with_it(parts: int, estimator: str) -> None:
    model, targets = Loud().double(), torch.randint(8, (B,))
    inputs = torch.randn(B, 200, dtype=torch.float64)
    probe = attached(model, estimator)
    held = torch.zeros(2, dtype=torch.float64)
    for part in torch.arange(B).chunk(parts):
        losses(model(inputs[part]), targets[part]).sum().backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            held[int(parameter is model.loud.gain)] += parameter.grad.square().sum()
        model.zero_grad()
    got = observe(probe, model, inputs, targets, factors=torch.ones(B), parts=parts)
    assert got is not None
    torch.testing.assert_close(got.mass, held, rtol=1e-5, atol=0.0)
    assert got.mass[0] / got.mass.sum() < 0.1 < 0.9 < probe.coverage.share
    probe.detach()
    assert not any(p._backward_hooks for p in model.parameters())


class Late(Hidden):
    """A gain that nobody sees any longer, once it is told to."""

    hidden = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.hidden else x * self.gain


def test_a_step_in_which_something_is_no_longer_seen_counts_nothing(estimator: str) -> None:
    """Masses are not measured where everything was seen; in the step after it they are."""
    late = Late(8)
    model = nn.Sequential(nn.Linear(5, 8), late, nn.Linear(8, 4)).double()
    inputs, targets = torch.randn(B, 5, dtype=torch.float64), torch.randint(4, (B,))
    probe = attached(model, estimator)
    found = []
    for hidden in (False, False, True, True):
        late.hidden = hidden
        got = observe(probe, model, inputs, targets)
        assert got is not None
        found.append((float(got.count.sum()), [float(part) for part in got.mass]))
    (first, (seen, other)), second, third, (last, (rest, unseen)) = found
    assert first == last == B and seen > 0.0 == other and rest > 0.0 < unseen
    assert second == (B, [0.0, 0.0])
    assert third == (0.0, [0.0, 0.0])


def rows(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = 100.0**seed * torch.randn(40, 200, generator=generator)
    return TensorDataset(inputs, torch.randint(8, (40,), generator=generator))


def trained(**options: Any) -> Controller:
    torch.manual_seed(0)
    controller, model = Controller(Mixture({"a": rows(0), "b": rows(1)}), **options), Loud()
    controller.watch(model)
    for (inputs, targets), draw in controller.loader(8, steps=40).with_draws():
        controller.loss(losses(model(inputs), targets), draw=draw).backward()
        controller.step()
    return controller


def test_weights_do_not_move_on_statistics_of_a_small_part_of_the_gradient() -> None:
    """0.1 moved them on less than 1 %, with a warning that spoke of parameters."""
    with pytest.warns(CoverageWarning) as caught:
        controller = trained()
    (warning,) = (str(w.message) for w in caught)
    assert "sees 4% of the gradient's squared norm. Not seen: loud (Hidden)." in warning
    # 3.5 % to 4.5 %, and what would let weights move is rounded down.
    assert re.search(r"Weights stay as they are; min_coverage=0\.0[34] would move them", warning)
    assert controller.weights.sampling.tolist() == [0.5, 0.5]
    assert "grad_var" in controller.statistics.supplied()


def test_weights_move_on_a_small_part_when_asked_to() -> None:
    with pytest.warns(CoverageWarning, match="Weights move all the same, as min_coverage allows"):
        controller = trained(min_coverage=0.0)
    assert controller.weights.sampling.tolist() != [0.5, 0.5]


def test_what_is_seen_survives_a_checkpoint() -> None:
    with pytest.warns(CoverageWarning):
        controller = trained()
    other = Controller(controller.mixture)
    other.watch(Loud())
    other.load_state_dict(controller.state_dict())
    left, right = controller._measurements.coverage, other._measurements.coverage
    assert left is not None and right is not None
    assert left.mass == right.mass is not None


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_the_least_coverage_is_a_share(value: float) -> None:
    with pytest.raises(ValueError, match=r"min_coverage must be finite and in \[0, 1\]"):
        Controller(Mixture({"a": rows(0)}), min_coverage=value)


def test_rows_inside_the_model_are_looked_at_in_the_first_step() -> None:
    """Not in the first measured one, which is the tenth."""
    controller, model = Controller(Mixture({"a": rows(0), "b": rows(1)})), Loud()
    controller.watch(model)
    (inputs, targets), draw = next(iter(controller.loader(8, steps=40).with_draws()))
    each = losses(model(torch.cat([inputs, inputs])), targets.repeat(2)).view(2, -1).mean(0)
    with pytest.raises(ObjectiveError, match=r"layers ran 16.*samples=torch.arange\(8\)"):
        controller.loss(each, draw=draw)
