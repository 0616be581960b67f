"""What the probe cannot see is left out as a whole, and said."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptmix.errors import CoverageWarning, SeamError
from adaptmix.statistics.gradients import GradientSums
from adaptmix.statistics.probe import GradientProbe
from adaptmix.statistics.rules import RULES, register_rule
from tests.statistics.cases import (
    B,
    K,
    MultiHead,
    Stack,
    assert_same,
    attached,
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


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, str], list[str]]] = {
    "unknown type": (
        lambda: stack(Gain(8)),
        {"blocks.0": "Gain"},
        ["blocks.0.gain"],
    ),
    "positions without samples": (
        lambda: Stack(Places(8, batched=False), [], nn.Linear(8, V)),
        {"stem.places": "Embedding"},
        ["stem.places.weight"],
    ),
    "positions of one sample": (
        lambda: Stack(Places(8, batched=True), [], nn.Linear(8, V)),
        {"stem.places": "Embedding"},
        ["stem.places.weight"],
    ),
    "one use of two without samples": (
        lambda: Stack(Twice(8), [], nn.Linear(8, V)),
        {"stem.table": "Embedding"},
        ["stem.table.weight"],
    ),
    "attention to keys of another width": (
        lambda: stack(MultiHead(8, of="two", kdim=6, vdim=5)),
        {"blocks.0.attention": "MultiheadAttention"},
        [
            "blocks.0.attention.q_proj_weight",
            "blocks.0.attention.k_proj_weight",
            "blocks.0.attention.v_proj_weight",
            "blocks.0.attention.in_proj_bias",
        ],
    ),
    "attention to learned keys": (
        lambda: stack(MultiHead(8, add_bias_kv=True)),
        {"blocks.0.attention": "MultiheadAttention"},
        ["blocks.0.attention.bias_k", "blocks.0.attention.bias_v"],
    ),
    "weights used by functions": (
        lambda: Functional(8),
        {"words": "Embedding", "hidden": "Linear"},
        ["words.weight", "hidden.weight", "hidden.bias"],
    ),
    "tied to a module without rule": (
        lambda: stack(Weighted(8)),
        {"blocks.0": "Weighted", "blocks.0.second": "Linear"},
        ["blocks.0.tied"],
    ),
    "weight norm": (
        lambda: stack(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
        {"blocks.0.parametrizations.weight": "ParametrizationList"},
        [
            "blocks.0.parametrizations.weight.original0",
            "blocks.0.parametrizations.weight.original1",
        ],
    ),
    "sparse embedding": (
        lambda: Stack(nn.Embedding(V, 8, scale_grad_by_freq=True), [], nn.Linear(8, V)),
        {"stem": "Embedding"},
        ["stem.weight"],
    ),
}


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
    names = {"blocks.0.attention", "blocks.0.attention.out_proj"}
    assert set(probe.coverage.unseen) == names


@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_what_is_hidden_is_left_out_and_named(name: str, parts: int, estimator: str) -> None:
    build, unseen, hidden = CASES[name]
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


def test_what_has_no_rule_is_known_before_training() -> None:
    probe = GradientProbe(stack(Gain(8)), K)
    assert probe.coverage.unseen == {"blocks.0": "Gain"}
    assert probe.coverage.share == pytest.approx(1 - 8 / (8 * V + 8 + 9 * V))


def test_a_registered_rule_makes_a_type_seen(
    monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    monkeypatch.setitem(RULES, Gain, None)
    register_rule(Gain)(lambda _, x, g: {"gain": (x * g).sum(1)})
    model, data = stack(Gain(8)).double(), tokens()
    probe = attached(model, estimator)
    assert_same(observe(probe, model, *data), reference(probe, model, *data))
    assert probe.coverage.share == 1.0


def test_a_rule_that_returns_the_wrong_shape_is_named(
    monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    monkeypatch.setitem(RULES, Gain, None)
    register_rule(Gain)(lambda _, x, g: {"gain": x * g})
    model = stack(Gain(8))
    with pytest.raises(ValueError, match=r"shape \(b, \*\(8,\)\); got \(7, 6, 8\)"):
        probe = attached(model, estimator)
        observe(probe, model, *tokens(), factors=torch.ones(B))


def test_one_warning_names_the_types_and_the_way_out(estimator: str) -> None:
    model = Stack(Places(64, batched=False), [], nn.Linear(64, V)).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe = attached(model, estimator)
        assert not caught
        observe(probe, model, *tokens())
        observe(probe, model, *tokens())
    (warning,) = caught
    assert warning.category is CoverageWarning
    assert "sees 79% of the trainable parameters" in str(warning.message)
    assert "Not seen: parameters in Embedding." in str(warning.message)
    assert "register_rule" in str(warning.message)


def test_a_model_that_is_hardly_seen_warns_when_attached(estimator: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Gain(400))
    with pytest.warns(CoverageWarning, match="sees 5% .* parameters in Gain"):
        attached(model, estimator)


def test_samples_that_are_flattened_into_rows_are_not_mistaken_for_samples(estimator: str) -> None:
    model = nn.Sequential(nn.Embedding(V, 8), nn.Flatten(0, 1), nn.Linear(8, V)).double()
    model.append(nn.Unflatten(0, (B, 6)))
    probe = attached(model, estimator)
    with pytest.warns(CoverageWarning, match="parameters in Linear"):
        observe(probe, model, *tokens())
    assert probe.coverage.unseen == {"2": "Linear"}


def test_the_whole_model_flattened_is_named(estimator: str) -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Embedding(V, V), nn.Unflatten(0, (B, 6))).double()
    probe = attached(model, estimator)
    with pytest.raises(SeamError, match=r"must run the 7 rows drawn; its layers ran 42"):
        observe(probe, model, *tokens())


def test_an_expert_is_seen_once_it_is_used(estimator: str) -> None:
    model = Stack(nn.Embedding(V, 8), [nn.Linear(8, 8), nn.Linear(8, 8)], nn.Linear(8, V)).double()
    expert = model.blocks.pop(1)
    probe = attached(nn.ModuleList([model, expert]), estimator)
    with pytest.warns(CoverageWarning):
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
    """Few parameters without a rule that hold most of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gain = nn.Linear(200, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(0.01 * x) + 30.0 * self.gain
        return output


def test_what_is_seen_of_the_gradient_counts_as_well(estimator: str) -> None:
    """The warning comes an observation later: the first does not wait for its own gradient."""
    model, targets = Loud().double(), torch.randint(8, (B,))
    inputs = torch.randn(B, 200, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as early:
        warnings.simplefilter("always")
        probe = attached(model, estimator)
        assert probe.coverage.mass is None
        observe(probe, model, inputs, targets, factors=torch.ones(B))
    assert not early
    held = {
        name: float(p.grad.square().sum())
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    mass = 1.0 - held["gain"] / sum(held.values())
    assert probe.coverage.share == pytest.approx(1608 / 1616)
    assert probe.coverage.mass == pytest.approx(mass)
    assert mass < 0.1
    with pytest.warns(CoverageWarning, match=r"sees 0% of the gradient's squared norm.*in Loud"):
        observe(probe, model, inputs, targets, factors=torch.ones(B))


def test_the_gradient_is_weighed_once_and_nothing_stays_on_the_parameters() -> None:
    model, data = mlp().double(), (torch.randn(B, 5).double(), torch.randint(4, (B,)))
    probe = attached(model)
    observe(probe, model, *data)
    assert probe.coverage.mass == pytest.approx(1.0)
    assert not any(p._backward_hooks for p in model.parameters())
