"""What the probe cannot see is left out as a whole, and said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture
from adaptmix.errors import CoverageWarning, ObjectiveError
from adaptmix.probe._probe import GradientProbe
from adaptmix.probe.estimators._gradients import GradientSums
from adaptmix.probe.rules import _registry as rules
from adaptmix.probe.rules._registry import register_rule
from tests.probe.cases import (
    B,
    MultiHead,
    Stack,
    assert_same,
    attached,
    losses,
    mlp,
    observe,
    reference,
)

V = 11


class Gain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain)
        return x * gain

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, gain = ctx.saved_tensors
        return gradient * gain, (gradient * x).flatten(0, -2).sum(0)


class Hidden(Gain):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = Multiply.apply(x, self.gain)  # type: ignore[no-untyped-call]
        return output


class Places(nn.Module):
    """Positions without a batch dim of their own, as GPT-2 has them."""

    def __init__(self, width: int, *, batched: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, width), nn.Embedding(6, width)
        self.batched = batched

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        output: Tensor = self.words(x) + self.places(places[None] if self.batched else places)
        return output


class OwnPlaces(nn.Module):
    """Every row of a batch has positions of its own, which are counted through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, width), nn.Embedding(64, width)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.numel()).view(x.shape)
        output: Tensor = self.words(x) + self.places(places)
        return output


class PackedRows(nn.Module):
    """A recurrent network over rows that are sorted by length and packed, and put back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % 3 + 4
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output: Tensor = pad_packed_sequence(
            self.network(packed)[0], batch_first=True, total_length=x.shape[1]
        )[0]
        return output


class Twice(nn.Module):
    """One table for words and places, of which the second use only has samples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(V, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.table(torch.arange(x.shape[1])) + self.table(x)
        return output


class Functional(nn.Module):
    """Ties the head to the embedding by a function; with or without a module call beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(V, width), nn.Linear(width, width)
        self.hidden = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        body = functional.relu(self.body(self.words(x)))
        return functional.linear(
            functional.linear(body, self.hidden.weight, self.hidden.bias), self.words.weight
        )


class Unbatched(nn.Module):
    """Attention over all samples as one sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        output: Tensor = self.attention(rows, rows, rows)[0]
        return output.view(x.shape)


class Weighted(nn.Module):
    """A module whose own parameter is another module's too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.tied = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x)) @ self.tied
        return output


def stack(middle: nn.Module, width: int = 8) -> Stack:
    return Stack(nn.Embedding(V, width), [middle], nn.Linear(width, V))


SEEN: dict[str, Callable[[], nn.Module]] = {
    "a factor of its own": lambda: stack(Gain(8)),
    "positions without samples": lambda: Stack(Places(8, batched=False), [], nn.Linear(8, V)),
    "positions of one sample": lambda: Stack(Places(8, batched=True), [], nn.Linear(8, V)),
    "one use of two without samples": lambda: Stack(Twice(8), [], nn.Linear(8, V)),
    "attention to keys of another width": lambda: stack(MultiHead(8, of="two", kdim=6, vdim=5)),
    "weights used by functions": lambda: Functional(8),
    "tied to a module without rule": lambda: stack(Weighted(8)),
    "weight norm": lambda: stack(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
    "spectral norm": lambda: stack(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
    "flattened samples": lambda: nn.Sequential(
        nn.Embedding(V, 8), nn.Flatten(0, 1), nn.Linear(8, V), nn.Unflatten(0, (-1, 6))
    ),
    "everything flattened": lambda: nn.Sequential(
        nn.Flatten(0, 1), nn.Embedding(V, V), nn.Unflatten(0, (-1, 6))
    ),
}

UNSEEN: dict[str, tuple[Callable[[], nn.Module], dict[str, str], list[str]]] = {
    "attention to learned keys": (
        lambda: stack(MultiHead(8, add_bias_kv=True)),
        {"blocks.0.attention": "MultiheadAttention"},
        ["blocks.0.attention.bias_k", "blocks.0.attention.bias_v"],
    ),
    "gradients scaled by frequency": (
        lambda: Stack(nn.Embedding(V, 8, scale_grad_by_freq=True), [], nn.Linear(8, V)),
        {"stem": "Embedding"},
        ["stem.weight"],
    ),
    "a function that nobody sees": (
        lambda: stack(Hidden(8)),
        {"blocks.0": "Hidden"},
        ["blocks.0.gain"],
    ),
}


@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
def test_rows_of_what_has_no_samples_are_left_out(estimator: str) -> None:
    """A tensor made of a buffer, or of numbers, with rows of its own beside the samples'."""
    model, (inputs, targets) = Stack(OwnPlaces(8), [], nn.Linear(8, V)).double(), tokens()
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets)
    assert got is not None
    assert probe.coverage.unseen == {"stem.places": "Embedding"}
    assert got.mass[1] > 0.0


def test_packed_rows_are_not_seen_and_others_are_not_mistaken_for_theirs(estimator: str) -> None:
    model, (inputs, targets) = stack(PackedRows(8)).double(), tokens()
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets, factors=torch.ones(B, dtype=torch.float64))
    assert got is not None
    assert probe.coverage.unseen == {"blocks.0.network": "LSTM"}
    held = torch.zeros(2, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        held[int("network" in name)] += parameter.grad.square().sum()
    torch.testing.assert_close(got.mass, held, rtol=1e-5, atol=0.0)


def assert_equivalent(got: GradientSums | None, want: GradientSums) -> None:
    """The same numbers, whatever the order of the parameters and with zeros for some."""
    assert got is not None
    torch.testing.assert_close(got.count, want.count)
    torch.testing.assert_close(got.square, want.square)
    torch.testing.assert_close(got.gram(), want.gram())


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(V, (B, 6)), torch.randint(V, (B, 6))


@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
def test_attention_over_all_samples_at_once_is_not_seen(estimator: str) -> None:
    torch.manual_seed(0)
    model, (inputs, targets) = stack(Unbatched(8)).double(), tokens()
    probe = attached(model, estimator)
    observe(probe, model, inputs, targets)
    # What is below attention holds parts of all samples.
    names = {"stem", "blocks.0.attention", "blocks.0.attention.out_proj"}
    assert set(probe.coverage.unseen) == names


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", SEEN)
def test_what_no_layer_shows_is_seen_all_the_same(name: str, parts: int, estimator: str) -> None:
    torch.manual_seed(0)
    model, (inputs, targets) = SEEN[name]().double().eval(), tokens()
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets, parts=parts)
    assert probe.coverage.share == 1.0
    assert not probe.coverage.unseen
    assert_equivalent(got, reference(probe, model, inputs, targets))


@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_hidden_is_left_out_and_named(name: str, parts: int, estimator: str) -> None:
    build, unseen, hidden = UNSEEN[name]
    torch.manual_seed(0)
    model, (inputs, targets) = build().double(), tokens()
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets, parts=parts)
    coverage = probe.coverage
    assert coverage.unseen == unseen
    lost = sum(model.get_parameter(name).numel() for name in hidden)
    assert coverage.share == pytest.approx(1 - lost / sum(p.numel() for p in model.parameters()))
    want = reference(probe, model, inputs, targets)
    assert_equivalent(got, want)


def test_a_registered_rule_makes_a_type_seen(
    monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    register_rule(Hidden)(lambda _, x, g: {"gain": (x * g).sum(1)})
    model, data = stack(Hidden(8)).double(), tokens()
    probe = attached(model, estimator)
    assert_same(observe(probe, model, *data), reference(probe, model, *data))
    assert probe.coverage.share == 1.0


def test_a_rule_that_returns_the_wrong_shape_is_named(
    monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    register_rule(Gain)(lambda _, x, g: {"gain": x * g})
    model = stack(Gain(8))
    with pytest.raises(ValueError, match=r"shape \(b, \*\(8,\)\); got \(7, 6, 8\)"):
        probe = attached(model, estimator)
        observe(probe, model, *tokens(), factors=torch.ones(B))


def test_an_expert_is_seen_once_it_is_used(estimator: str) -> None:
    model = Stack(nn.Embedding(V, 8), [nn.Linear(8, 8), nn.Linear(8, 8)], nn.Linear(8, V)).double()
    expert = model.blocks.pop(1)
    probe = attached(nn.ModuleList([model, expert]), estimator)
    observe(probe, model, *tokens())
    assert probe.coverage.unseen == {"1": "Linear"}
    model.blocks.append(expert)
    inputs, targets = tokens()
    got = observe(probe, model, inputs, targets)
    assert probe.coverage.share == 1.0
    assert_equivalent(got, reference(probe, model, inputs, targets))


def test_the_probe_of_a_covered_model_is_silent(estimator: str) -> None:
    assert attached(mlp(), estimator).coverage.share == 1.0


def test_batch_normalisation_is_a_named_warning() -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.BatchNorm1d(50), nn.Linear(50, 50))
    probe = GradientProbe(model, 2)
    with pytest.warns(CoverageWarning, match="normalises over the batch"):
        probe.attach()


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
    assert "Weights stay as they are; min_coverage=0.04 would move them" in warning
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
