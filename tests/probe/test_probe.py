"""The probe's sums equal those of a loop over samples, in float64, for every model and setting.

Also tests ``probe/estimators/_exact.py``, ``probe/estimators/_gradients.py`` and
``probe/estimators/_micro_batch.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adaptmix.probe.estimators import _exact as exact
from adaptmix.probe.estimators import _gradients as gradients
from adaptmix.probe.estimators import _micro_batch as micro_batch
from tests.probe.cases import (
    CASES,
    DOMAINS,
    FACTORS,
    B,
    K,
    Stack,
    assert_same,
    attached,
    conv1d,
    losses,
    mlp,
    observe,
    reference,
    transformer,
)

# PyTorch's own remark on the convolution that is tested here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def test_matches_a_loop_over_samples(case: tuple[Stack, Tensor, Tensor], estimator: str) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets)
    assert_same(got, reference(probe, model, inputs, targets))
    assert probe.coverage.share == 1.0
    assert not probe.coverage.unseen


def test_gram_is_that_of_the_flat_vectors(
    case: tuple[Stack, Tensor, Tensor], estimator: str
) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets)
    assert got is not None
    flat = torch.cat([vector.flatten(1) for vector in got.vectors], dim=1)
    torch.testing.assert_close(got.gram(), flat @ flat.T)


@pytest.mark.parametrize("after", [lambda x: x * 1024.0, lambda x: x / 7.0, lambda x: -x])
def test_what_happens_to_the_loss_afterwards_is_divided_out(
    case: tuple[Stack, Tensor, Tensor], after: Callable[[Tensor], Tensor], estimator: str
) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets, after=after)
    assert_same(got, reference(probe, model, inputs, targets))


@pytest.mark.parametrize("parts", [2, 3, B])
def test_micro_batches_are_pooled(
    case: tuple[Stack, Tensor, Tensor], parts: int, estimator: str
) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets, parts=parts)
    assert_same(got, reference(probe, model, inputs, targets))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
def test_activation_checkpointing(
    case: tuple[Stack, Tensor, Tensor], reentrant: bool, parts: int, estimator: str
) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    want = reference(probe, model, inputs, targets)
    model.reentrant = reentrant
    assert_same(observe(probe, model, inputs, targets, parts=parts), want)


@pytest.mark.parametrize("reentrant", [True, False, None])
def test_parameters_used_once_are_not_kept_per_sample(
    monkeypatch: pytest.MonkeyPatch, reentrant: bool | None
) -> None:
    model, data = conv1d().double(), CASES["conv1d"][1]()
    model.reentrant = reentrant
    sizes: list[int] = []
    reduce = exact.ExactBatch._reduce

    def spy(self: exact.ExactBatch, index: int, chunk: slice, rows: Tensor) -> None:
        sizes.append(len(rows))
        reduce(self, index, chunk, rows)

    monkeypatch.setattr(exact, "_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(exact.ExactBatch, "_reduce", spy)
    observe(attached(model), model, *data)
    assert set(sizes) == {1}


def test_chunks_of_samples_change_nothing(
    case: tuple[Stack, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    model, inputs, targets = case
    monkeypatch.setattr(exact, "_CHUNK_ELEMENTS", 600)
    monkeypatch.setattr(gradients, "_GRAM_COLUMNS", 3)
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets)
    assert_same(got, reference(probe, model, inputs, targets))


def test_products_of_vectors_are_a_short_cut_only(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many domains, per-sample gradients of layers with 2-D inputs are formed after all."""
    model, data = mlp().double(), CASES["mlp"][1]()
    probe = attached(model, estimator)
    short = observe(probe, model, *data)
    assert short is not None
    monkeypatch.setattr(micro_batch, "FEW_DOMAINS", K - 1)
    assert_same(observe(probe, model, *data), short)


def test_samples_without_weight_are_left_out_even_when_not_finite(estimator: str) -> None:
    model, (inputs, targets) = mlp().double(), CASES["mlp"][1]()
    kept = torch.tensor([0, 2, 3, 5, 6])
    factors = torch.zeros_like(FACTORS).index_copy(0, kept, FACTORS[kept])
    inputs[[1, 4]] = torch.inf
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    loss = factors[kept] @ losses(model(inputs), targets)[kept]
    probe.expect(DOMAINS, factors, loss)
    loss.backward()
    want = reference(probe, model, inputs[kept], targets[kept], DOMAINS[kept])
    assert_same(probe.collect(), want)


def test_a_sample_that_is_not_finite_costs_its_micro_batch_only(
    case: tuple[Stack, Tensor, Tensor], estimator: str
) -> None:
    model, inputs, targets = case
    factors = FACTORS.clone()
    factors[5] = torch.nan
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets, factors=factors, parts=4)
    first = slice(0, 4)
    want = reference(probe, model, inputs[first], targets[first], DOMAINS[first])
    last = reference(probe, model, inputs[6:], targets[6:], DOMAINS[6:])
    for total, part in zip(want.tensors(), last.tensors(), strict=True):
        total += part
    want.skipped = torch.tensor(2.0)
    assert_same(got, want)


class Overflow(nn.Module):
    """The identity, whose backward overflows for one sample."""

    def forward(self, x: Tensor) -> Tensor:
        factors = torch.ones(len(x), 1, dtype=x.dtype).index_fill(0, torch.tensor([2]), torch.inf)
        output = x.clone()
        output.register_hook(lambda g: g * factors)
        return output


def test_an_overflow_in_an_early_layer_leaves_the_whole_sample_out(estimator: str) -> None:
    model = Stack(nn.Linear(5, 8), [Overflow()], nn.Linear(8, 4)).double()
    inputs, targets = CASES["mlp"][1]()
    probe = attached(model, estimator)
    got = observe(probe, model, inputs, targets)
    assert got is not None
    assert got.skipped == B
    assert not any(tensor.any() for tensor in (got.count, got.square, *got.vectors))


def test_frozen_parameters_are_skipped(case: tuple[Stack, Tensor, Tensor], estimator: str) -> None:
    model, inputs, targets = case
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 1)
    probe = attached(model, estimator)
    assert_same(observe(probe, model, inputs, targets), reference(probe, model, inputs, targets))
    assert probe.coverage.share == 1.0


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_only_weights_or_only_biases_are_trained(
    case: tuple[Stack, Tensor, Tensor], kind: str, estimator: str
) -> None:
    model, inputs, targets = case
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(kind))
    probe = attached(model, estimator)
    assert_same(observe(probe, model, inputs, targets), reference(probe, model, inputs, targets))


def test_low_precision_gradients_are_summed_in_float32(estimator: str) -> None:
    model, (inputs, targets) = transformer(), CASES["transformer"][1]()
    before = attached(model.double(), estimator)
    want = reference(before, model, inputs, targets)
    before.detach()
    probe = attached(model.bfloat16(), estimator)
    got = observe(probe, model, inputs, targets, factors=FACTORS.bfloat16())
    assert got is not None
    assert {vector.dtype for vector in got.vectors} == {torch.float32}
    torch.testing.assert_close(got.square, want.square, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast(backward_inside: bool, estimator: str) -> None:
    model, (inputs, targets) = transformer(), CASES["transformer"][1]()
    probe = attached(model, estimator)
    want = reference(probe, model, inputs, targets)
    probe.arm(True, step=0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = (FACTORS.float() * losses(model(inputs), targets)).sum()
        probe.expect(DOMAINS, FACTORS.float(), loss)
        if backward_inside:
            (loss * 1024.0).backward()
    if not backward_inside:
        (loss * 1024.0).backward()
    got = probe.collect()
    assert got is not None
    assert {vector.dtype for vector in got.vectors} == {torch.float32}
    torch.testing.assert_close(got.square, want.square, rtol=0.05, atol=0.0)
