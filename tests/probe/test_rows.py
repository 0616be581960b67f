"""Models that run other rows than the samples: a sample's gradient is that of all of its rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptmix.errors import ObjectiveError
from adaptmix.probe._probe import GradientProbe
from adaptmix.probe.estimators._gradients import GradientSums
from tests.probe.cases import DOMAINS, FACTORS, B, K, assert_same, attached, by_sample

V, T = 11, 6

Loss = Callable[[nn.Module, Tensor], Tensor]
"""(model, (B, k, T) inputs) -> (B,) losses."""


def preferences(model: nn.Module, inputs: Tensor) -> Tensor:
    """Chosen answers come first, then rejected ones, as TRL runs them."""
    chosen, rejected = model(inputs.transpose(0, 1).flatten(0, 1)).chunk(2)
    return -functional.logsigmoid((chosen - rejected).flatten())


def crops(model: nn.Module, inputs: Tensor) -> Tensor:
    """The crops of an image follow each other, and agree with each other."""
    scores = model(inputs.flatten(0, 1)).view(len(inputs), -1)
    losses: Tensor = scores.var(1) + scores.square().sum(1)
    return losses


class Averaged(nn.Module):
    """Averages the crops of an image before its head, so that it runs R rows and then B."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(V, 8), nn.LayerNorm(8), nn.Linear(8, 1)
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.words(x)).mean(1)
        output: Tensor = self.head(y.view(-1, self.k, 8).mean(1))
        return output


def averaged(model: nn.Module, inputs: Tensor) -> Tensor:
    losses: Tensor = model(inputs.flatten(0, 1)).flatten().square()
    return losses


def tokens() -> nn.Module:
    body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * T, 1))
    return nn.Sequential(nn.Embedding(V, 8), nn.LayerNorm(8), body)


def vectors() -> nn.Module:
    """Inputs of one position, whose products are summed by a short cut elsewhere."""
    return nn.Sequential(nn.Linear(T, 8), nn.Tanh(), nn.Linear(8, 1))


def pictures() -> nn.Module:
    first = nn.Conv1d(1, 4, 3, padding=1)
    body = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten())
    return nn.Sequential(nn.Unflatten(1, (1, T)), first, body, nn.Linear(4 * T, 1))


BLOCKS = torch.arange(B).repeat(2)
NEXT = torch.arange(B).repeat_interleave(3)

CASES: dict[str, tuple[Callable[[], nn.Module], Loss, Tensor, bool]] = {
    "pairs of texts": (tokens, preferences, BLOCKS, True),
    "pairs of vectors": (vectors, preferences, BLOCKS, False),
    "crops": (pictures, crops, NEXT, False),
    "crops of texts": (tokens, crops, NEXT, True),
    "averaged crops": (lambda: Averaged(3), averaged, NEXT, True),
}


def made(name: str) -> tuple[nn.Module, Loss, Tensor, Tensor]:
    build, loss, samples, words = CASES[name]
    shape = (B, len(samples) // B, T)
    inputs = torch.randint(V, shape) if words else torch.randn(shape, dtype=torch.float64)
    return build().double(), loss, samples, inputs


def expected(probe: GradientProbe, model: nn.Module, loss: Loss, inputs: Tensor) -> GradientSums:
    """The sums by autograd, one sample with all of its rows after the other."""
    seen = probe._parameters
    assert not any(seen.refused(index) for index in seen.candidates)
    return by_sample(probe, model, lambda j: loss(model, inputs[j : j + 1]).sum(), DOMAINS, K)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("parts", [1, 3])
def test_the_rows_of_a_sample_add_up_before_they_are_squared(
    name: str, parts: int, estimator: str
) -> None:
    model, loss, samples, inputs = made(name)
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    for part in torch.arange(B).chunk(parts):
        each = loss(model, inputs[part])
        total = FACTORS[part] @ each
        k, n = len(samples) // B, len(part)
        numbers = torch.arange(n).repeat(k) if samples is BLOCKS else NEXT[: n * k]
        probe.expect(DOMAINS[part], FACTORS[part], total, samples=numbers, values=each)
        total.backward()
    assert_same(probe.collect(), expected(probe, model, loss, inputs))
    assert probe.coverage.share == 1.0


def test_rows_that_a_collator_sorted_are_told_apart(estimator: str) -> None:
    """As many rows as samples, in another order."""
    model, inputs = vectors().double(), torch.randn(B, T, dtype=torch.float64)
    order = torch.randperm(B)
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    losses = model(inputs[order]).flatten().square()
    total = FACTORS[order] @ losses
    probe.expect(DOMAINS, FACTORS, total, samples=order)
    total.backward()

    def loss(model: nn.Module, inputs: Tensor) -> Tensor:
        losses: Tensor = model(inputs).flatten().square()
        return losses

    assert_same(probe.collect(), expected(probe, model, loss, inputs))


@pytest.mark.parametrize("name", ["pairs of texts", "crops"])
def test_rows_of_unknown_samples_are_named_before_the_backward_pass(name: str) -> None:
    """0.1 died after it, with "loss() must be followed by backward()"."""
    model, loss, samples, inputs = made(name)
    probe = attached(model)
    probe.arm(True, step=0)
    total = FACTORS @ loss(model, inputs)
    k = len(samples) // B
    with pytest.raises(
        ObjectiveError, match=rf"layers ran {len(samples)}.*arange\({B}\).repeat\({k}\)"
    ):
        probe.expect(DOMAINS, FACTORS, total)


def test_rows_of_another_number_than_told_are_named() -> None:
    model, loss, _, inputs = made("pairs of texts")
    probe = attached(model)
    probe.arm(True, step=0)
    total = FACTORS @ loss(model, inputs)
    with pytest.raises(ObjectiveError, match=r"must run the 21 rows of samples; its layers ran 14"):
        probe.expect(DOMAINS, FACTORS, total, samples=NEXT)
