"""Noise terms against loops, and the law that a calibrated domain has dispersion 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptmix import noise
from adaptmix.noise import NoiseTerms
from tests.helpers_data import SIGMAS


def softmax_loop(logits: Tensor, targets: Tensor, ignored: int) -> tuple[list[float], list[float]]:
    """Σ‖y − p‖² and Σ(1 − ‖p‖²) over supervised positions, one position at a time."""
    residuals, expectations = [], []
    for row, labels in zip(logits.double().tolist(), targets.tolist(), strict=True):
        residual = expected = 0.0
        for scores, label in zip(row, labels, strict=True):
            if label == ignored:
                continue
            exponentials = [math.exp(score) for score in scores]
            p = [value / math.fsum(exponentials) for value in exponentials]
            residual += sum((float(c == label) - p[c]) ** 2 for c in range(len(p)))
            expected += 1.0 - sum(value**2 for value in p)
        residuals.append(residual)
        expectations.append(expected)
    return residuals, expectations


@pytest.mark.parametrize("ignored", [-100, 2])
def test_softmax_matches_the_loop(ignored: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(6, 5, 4, generator=generator)
    targets = torch.randint(4, (6, 5), generator=generator)
    targets[0, :3] = targets[3] = ignored
    terms = noise.softmax(logits, targets, ignore_index=ignored)
    residual, expected = softmax_loop(logits, targets, ignored)
    np.testing.assert_allclose(terms.residual, residual, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms.expected, expected, rtol=1e-5, atol=1e-6)


def test_softmax_of_one_position_per_row_and_of_a_grid() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 2, 5, generator=generator)
    targets = torch.randint(5, (3, 2, 2), generator=generator)
    grid = noise.softmax(logits, targets)
    flat = noise.softmax(logits.reshape(12, 5), targets.reshape(12))
    for whole, single in zip(grid, flat, strict=True):
        assert whole.shape == (3,)
        assert single.shape == (12,)
        torch.testing.assert_close(whole, single.reshape(3, 4).sum(1))


def test_a_row_without_supervision_tells_nothing() -> None:
    terms = noise.softmax(torch.randn(2, 3, 4), torch.full((2, 3), -100))
    assert terms.residual.tolist() == terms.expected.tolist() == [0.0, 0.0]


def test_each_supervised_position_stands_for_the_others_equally_often() -> None:
    kept = torch.tensor([[True, False, True, True, True, False], [False, True, False] * 2])
    seeds = torch.arange(2**16)
    for number in (1, 3):
        for row in kept:
            rows = row.expand(len(seeds), -1)
            chosen = noise._spread(rows, seeds, number) % len(row)
            taken = chosen.flatten().bincount(minlength=6) / len(seeds)
            expected = torch.where(row, number / row.sum(), 0.0)
            torch.testing.assert_close(taken, expected, rtol=0.0, atol=1e-4)


def test_long_rows_go_by_some_of_their_positions() -> None:
    """Over 2000 rows, 5 of 40 positions tell what all do, within five standard errors (6e-7)."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2000, 40, 7, generator=generator)
    logits[:, ::8] *= 4.0  # a period that evenly spaced positions may fall in step with
    targets = torch.randint(7, (2000, 40), generator=generator)
    targets[torch.rand(2000, 40, generator=generator) < 0.5] = -100
    some, every = (noise.softmax(logits, targets, positions=n) for n in (5, None))
    for few, all_ in zip(some, every, strict=True):
        apart = few - all_
        assert abs(float(apart.mean())) < 5.0 * float(apart.std()) / 2000**0.5
        assert float(apart.std()) > 0.1
    again = noise.softmax(logits, targets, positions=5)
    assert torch.equal(again.residual, some.residual)
    exact = noise.softmax(logits[:, :16], targets[:, :16])
    assert torch.equal(
        exact.residual, noise.softmax(logits[:, :16], targets[:, :16], positions=None).residual
    )


def test_thinning_leaves_random_state_and_unsupervised_rows_alone() -> None:
    state = torch.get_rng_state()
    targets = torch.full((2, 30), -100)
    targets[1, 3] = 2
    logits = torch.zeros(2, 30, 4)
    logits[0] = math.nan
    terms = noise.softmax(logits, targets)
    assert terms.residual.tolist() == pytest.approx([0.0, 0.75])
    assert terms.expected.tolist() == pytest.approx([0.0, 0.75])
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="positions must be an integer >= 1; got 0"):
        noise.softmax(logits, targets, positions=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_computes_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    targets = torch.tensor([0, 1, 2, 3])
    terms = noise.softmax(logits, targets)
    exact = noise.softmax(logits.float(), targets)
    assert terms.residual.dtype == torch.float32
    assert torch.equal(terms.residual, exact.residual)
    assert torch.equal(terms.expected, exact.expected)


def excess(logits: Tensor, targets: Tensor) -> float:
    """How many standard deviations Σ residual lies above Σ expected if the model is right.

    With class k the residual is 1 − 2 p_k + ‖p‖², so its variance is 4 (Σ p³ − ‖p‖⁴).
    """
    terms = noise.softmax(logits, targets)
    p = logits.double().softmax(-1)
    variance = 4.0 * ((p**3).sum(-1) - (p**2).sum(-1) ** 2).sum()
    return float((terms.residual.double() - terms.expected.double()).sum() / variance.sqrt())


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_a_calibrated_domain_has_dispersion_one_whatever_its_entropy(temperature: float) -> None:
    # False alarm: 7e-6 per temperature (two-sided, 4.5 standard deviations of a sum of 20,000).
    generator = torch.Generator().manual_seed(3)
    logits = temperature * torch.randn(20_000, 8, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    assert abs(excess(logits, targets)) < SIGMAS


def test_labels_noisier_than_the_model_thinks_raise_the_dispersion() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 4.0 * torch.randn(20_000, 8, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    wrong = torch.rand(20_000, generator=generator) < 0.2
    targets = torch.where(wrong, torch.randint(8, (20_000,), generator=generator), targets)
    assert excess(logits, targets) > 2 * SIGMAS


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
def test_squared_matches_the_loop(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    predictions = torch.randn(shape, generator=generator)
    targets = torch.randn(shape, generator=generator)
    terms = noise.squared(predictions, targets)
    differences = (predictions.double() - targets.double()).reshape(4, -1).tolist()
    expected = [math.fsum(value**2 for value in row) for row in differences]
    np.testing.assert_allclose(terms.residual, expected, rtol=1e-5)
    assert terms.expected.tolist() == [math.prod(shape[1:])] * 4


def test_terms_carry_no_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    for terms in (
        noise.softmax(logits, torch.tensor([0, 1, 2])),
        noise.squared(logits, torch.zeros(3, 4)),
    ):
        assert not terms.residual.requires_grad
        assert not terms.expected.requires_grad


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^targets must .*\(2, 5\); got \(2, 4\)\. Classes go"):
        noise.softmax(torch.zeros(2, 5, 4), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^targets must .*\(3, 1\); got \(3,\)\. Reshape one"):
        noise.squared(torch.zeros(3, 1), torch.zeros(3))


def test_a_tensor_stands_for_squared_residuals() -> None:
    terms = NoiseTerms.of(torch.tensor([0.5, 2.0]), size=2)
    assert terms.residual.tolist() == [0.5, 2.0]
    assert terms.expected.tolist() == [1.0, 1.0]


def test_terms_pass_through() -> None:
    terms = NoiseTerms(torch.ones(2), torch.ones(2))
    assert NoiseTerms.of(terms) is terms


@pytest.mark.parametrize("value", [[1.0, 2.0], (torch.ones(2), torch.ones(2)), None, 0.5])
def test_other_types_are_no_terms(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^noise must be terms of adaptmix\.noise or a \(B,\)"):
        NoiseTerms.of(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (torch.ones(3), 2),
        (torch.tensor(1.0), None),
        (torch.ones(2, 2), None),
        (NoiseTerms(torch.ones(2), torch.ones(3)), None),
        (NoiseTerms(torch.ones(3), torch.ones(2)), 2),
    ],
)
def test_terms_of_another_shape_are_refused(value: NoiseTerms | Tensor, size: int | None) -> None:
    with pytest.raises(ValueError, match=r"^noise must have one term per row"):
        NoiseTerms.of(value, size=size)
