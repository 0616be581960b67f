"""Sketches are unbiased for variances and for the Gram matrix, tied parameters included."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adaptmix.probe._probe import GradientProbe
from adaptmix.probe.estimators import _sketch as sketch
from adaptmix.probe.estimators._gradients import GradientSums
from tests.probe.cases import (
    CASES,
    DOMAINS,
    B,
    K,
    Stack,
    assert_same,
    attached,
    losses,
    observe,
    reference,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

Moments = tuple[np.ndarray, np.ndarray]


def moments(sums: GradientSums) -> Moments:
    """(K,) variances within domains and (K, K) inner products of mean gradients."""
    n, square, gram = (x.numpy() for x in (sums.count, sums.square, sums.gram()))
    scatter = square - np.diag(gram) / n
    products = (gram - np.diag(square)) / (np.outer(n, n) - np.diag(n))
    return scatter / np.maximum(n - 1, 1), products


def z_scores(draws: list[Moments], want: Moments) -> np.ndarray:
    scores = []
    for samples, truth in zip(zip(*draws, strict=True), want, strict=True):
        values = np.stack(samples)
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        scores.append(((values.mean(0) - truth) / error).ravel())
    return np.concatenate(scores)


def sums_of(
    probe: GradientProbe, forward: Callable[[], Tensor], domains: Tensor = DOMAINS, *, step: int = 0
) -> GradientSums:
    """One observed step on the sum of the (B,) losses that ``forward`` returns."""
    probe.arm(True, step=step)
    loss = forward().sum()
    probe.expect(domains, torch.ones(len(domains), dtype=torch.float64), loss)
    loss.backward()
    sums = probe.collect()
    assert sums is not None
    return sums


def draws_of(
    model: nn.Module, forward: Callable[[], Tensor], domains: Tensor, number: int
) -> tuple[list[Moments], Moments]:
    """What sketches of one and the same batch give, and the exact values."""
    exact = attached(model)
    want = moments(sums_of(exact, forward, domains))
    exact.detach()
    probe = attached(model, "sketch")
    steps = range(number)
    return [moments(sums_of(probe, forward, domains, step=step)) for step in steps], want


@pytest.mark.parametrize("name", CASES)
def test_variances_and_products_are_unbiased(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 statistics per model, each |z| < 4.5: all five models pass but once in 2,400 seeds."""
    monkeypatch.setattr(sketch, "_NARROW", 3)
    monkeypatch.setattr(sketch, "_VECTOR", 3)
    build, data = CASES[name]
    model, (inputs, targets) = build().double(), data()
    draws, want = draws_of(model, lambda: losses(model(inputs), targets), torch.arange(B) % K, 300)
    assert np.abs(z_scores(draws, want)).max() < 4.5


def test_the_gram_matrix_is_unbiased_where_domains_align() -> None:
    """A linear model whose domains' mean gradients have cosines -0.5, 0.9 and about -0.1.

    12 statistics, each |z| < 4: fails by chance once in 1,300 seeds. Sketched from 64 × 48
    elements to 16 × 16, one observation's cosines are off by less than 0.2.
    """
    torch.manual_seed(0)
    model = nn.Linear(64, 48, bias=False).double()
    basis = torch.linalg.qr(torch.randn(64, 3, dtype=torch.float64))[0].T
    first, second, third = basis
    means = torch.stack([first, 0.9 * first + 0.19**0.5 * second, -0.5 * first + 0.75**0.5 * third])
    domains = torch.arange(60) % K
    inputs = means[domains] + 0.05 * torch.randn(60, 64, dtype=torch.float64)
    upstream = torch.randn(48, dtype=torch.float64)

    draws, want = draws_of(model, lambda: model(inputs) @ upstream, domains, 400)
    assert np.abs(z_scores(draws, want)).max() < 4.0

    def cosines(gram: np.ndarray) -> np.ndarray:
        norms = np.sqrt(np.diag(gram))
        found: np.ndarray = gram / np.outer(norms, norms)
        return found

    truth = cosines(want[1])
    np.testing.assert_allclose(truth[0, 1:], [0.9, -0.5], atol=0.05)
    pooled = cosines(np.mean([gram for _, gram in draws], axis=0))
    np.testing.assert_allclose(pooled, truth, atol=0.03)


def test_a_tied_weight_has_one_sketch_of_the_sum_of_its_uses() -> None:
    """Of one weight used twice with opposite signs, nothing is left; in every single draw."""
    layer = nn.Linear(40, 40).double()

    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = layer, nn.Linear(40, 40).double()
            self.other.weight = layer.weight
            self.one.bias = self.other.bias = None  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            difference: Tensor = self.one(x) - self.other(x)
            return difference

    got = observe(attached(model := Difference(), "sketch"), model, *data_of(40))
    assert got is not None
    assert float(got.square.abs().max()) < 1e-20


def test_layers_that_share_weights_and_biases_crosswise(estimator: str) -> None:
    """The third layer's weight is the first's, and its bias the second's."""
    layers = [nn.Linear(8, 8) for _ in range(3)]
    layers[2].weight, layers[2].bias = layers[0].weight, layers[1].bias
    model = Stack(nn.Linear(8, 8), [nn.Sequential(*layers)], nn.Linear(8, 4)).double()
    probe = attached(model, estimator)
    data = data_of(8)
    assert_same(observe(probe, model, *data), reference(probe, model, *data))


def data_of(width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(B, width, dtype=torch.float64), torch.randint(4, (B,))


def test_the_bias_of_a_layer_is_sketched_beside_its_weight() -> None:
    """With a zero input only the bias has a gradient."""
    model = nn.Linear(40, 40).double()
    inputs, targets = data_of(40)
    got = observe(attached(model, "sketch"), model, inputs.zero_(), targets)
    assert got is not None
    assert (got.square > 0.0).all()


def test_the_same_step_gives_the_same_sketch_and_another_step_another() -> None:
    model, data = nn.Linear(40, 40).double(), data_of(40)
    probe = attached(model, "sketch")

    def square(step: int) -> list[float]:
        sums = sums_of(probe, lambda: losses(model(data[0]), data[1]), step=step)
        values: list[float] = sums.square.tolist()
        return values

    first, second, again = square(1), square(2), square(1)
    assert first == again
    assert first != second


def test_state_is_small_whatever_the_model() -> None:
    model = nn.Sequential(nn.Embedding(5000, 300), nn.Linear(300, 400), nn.LayerNorm(400))
    probe = attached(model, "sketch")
    tokens = torch.randint(5000, (B, 9))
    (vectors,) = sums_of(probe, lambda: model(tokens).square().mean((1, 2))).vectors
    assert vectors.shape == (K, 32 * 32 + 32 * 32 + 32 + 256 + 256)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_are_not_kept_alive(reentrant: bool) -> None:
    """What a hook holds of a linear layer's input is its projection, made in the forward."""
    block = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).double()
    probe = attached(block, "sketch")
    held: list[Tensor] = []
    keep: Callable[..., Tensor | None] = sketch.SketchBatch.keep

    def spy(self: sketch.SketchBatch, layer: object, x: Tensor) -> Tensor | None:
        kept = keep(self, layer, x)
        assert kept is not None
        held.append(kept)
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketch.SketchBatch, "keep", spy)
        x = torch.randn(B, 64, dtype=torch.float64, requires_grad=True)
        sums_of(probe, lambda: checkpoint(block, x, use_reentrant=reentrant).square().mean(1))
    assert held
    assert all(kept.untyped_storage().nbytes() == B * 16 * 8 for kept in held)


def test_what_is_kept_of_a_layer_goes_when_its_gradient_has_come(
    case: tuple[Stack, Tensor, Tensor], estimator: str
) -> None:
    """Though the graph, and its hooks with it, is still there: peak memory depends on it."""
    model, inputs, targets = case
    probe = attached(model, estimator)
    kind = type(probe._new_batch())
    keep: Callable[..., Tensor | None] = kind.keep
    held: list[weakref.ref[Tensor]] = []

    def spy(self: object, layer: object, x: Tensor) -> Tensor | None:
        kept = keep(self, layer, x)
        assert kept is not None
        held.append(weakref.ref(kept))
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "keep", spy)
        probe.arm(True, step=0)
        loss = losses(model(inputs), targets).sum()
        probe.expect(DOMAINS, torch.ones_like(loss).expand(B), loss)
        assert all(kept() is not None for kept in held)
        seen: list[int] = []
        next(iter(model.parameters())).register_hook(
            lambda _: seen.append(sum(kept() is not None for kept in held))
        )
        loss.backward()
    assert seen and max(seen) <= 2  # the first layer, whose hook may be running
    assert probe.collect() is not None


def test_outputs_that_nobody_needs_are_not_kept_alive(estimator: str) -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    probe = attached(model, estimator)
    held: list[weakref.ref[Tensor]] = []
    model[0].register_forward_hook(lambda _, __, output: held.append(weakref.ref(output)))
    inputs, targets = data_of(5)
    probe.arm(True, step=0)
    loss = losses(model(inputs), targets).sum()
    assert loss.requires_grad
    assert [output() for output in held] == [None]


def test_whole_gradients_are_sketched_by_the_projections_of_both_sides() -> None:
    """As those are that a registered rule returns."""
    model = Stack(nn.Embedding(30, 20), [], nn.Linear(20, 30, bias=False)).double()
    model.head.weight = model.stem.weight
    probe = attached(model, "sketch")
    projections = probe._projections
    assert projections is not None
    projections.redraw(0)
    whole = torch.randn(2, 30, 20, dtype=torch.float64)
    left, right = (projections._sides[0, dim] for dim in (0, 1))
    want = right.fold(left.fold(whole, 1), 2).flatten(1)
    assert torch.equal(projections.sketch(0, whole), want)
    assert projections.widths == [256]


def test_sums_are_the_same_however_many_domains_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few domains they are a product of matrices, of many they are added row by row."""
    build, data = CASES["mlp"]
    model, (inputs, targets) = build().double(), data()
    probe = attached(model, "sketch")
    found = []
    for few in (K, 0):
        monkeypatch.setattr(sketch, "FEW_DOMAINS", few)
        found.append(sums_of(probe, lambda: losses(model(inputs), targets)))
    assert_same(found[1], found[0])
