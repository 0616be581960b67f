"""What the probe cannot see is left out as a whole, and said."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adaptmix.errors import CoverageWarning
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
    mlp,
    observe,
    reference,
)
from tests.probe.unusual import (
    Functional,
    Gain,
    Hidden,
    OwnPlaces,
    PackedRows,
    Places,
    Twice,
    Unbatched,
    V,
    Weighted,
    stack,
)

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


@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
@pytest.mark.parametrize(
    ("norm", "seen"),
    [
        (nn.BatchNorm1d(6), {"1"}),
        (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), {"1"}),
        (nn.InstanceNorm1d(6, affine=True), set()),
        (nn.BatchNorm1d(6).eval(), set()),
    ],
    ids=["batch", "instance, with statistics", "instance", "batch, evaluated"],
)
def test_running_statistics_are_those_of_the_forward_pass(norm: nn.Module, seen: set[str]) -> None:
    """Run once more for each sample alone, they would be written by every sample."""
    norm = copy.deepcopy(norm)
    model = nn.Sequential(nn.Embedding(V, 8), norm, nn.Linear(8, V))
    inputs, targets = torch.randint(V, (B, 6)), torch.randint(V, (B, 6))
    plain = copy.deepcopy(model)
    plain(inputs)
    probe = attached(model)
    observe(probe, model, inputs, targets, proved=False)
    assert set(probe.coverage.unseen) == seen
    for mine, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
def test_batch_normalisation_of_one_value_a_sample_trains() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, V))
    probe = attached(model)
    got = observe(probe, model, torch.randn(B, 4), torch.randint(V, (B,)), proved=False)
    assert got is not None
    assert set(probe.coverage.unseen) == {"1"}
