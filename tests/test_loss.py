"""The loss scaler against formulas written out in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptmix import Controller, Mixture
from adaptmix._loss import DomainLossScaler, RowLosses
from adaptmix._types import Weights
from tests.helpers_data import draw_of

DOMAINS = [2, 0, 1, 0, 2]
SHARES = [0.3, 0.25, 0.45]
DRAW = draw_of(DOMAINS, SHARES)
WEIGHTS = Weights([0.2, 0.3, 0.5], [0.5, 2.0, 1.0], [0.4, 0.2, 0.4])
SHAPES = [(5,), (5, 4), (5, 4, 3)]


def losses_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def mask_of(shape: tuple[int, ...]) -> Tensor:
    """Some entries supervised; the first row not at all."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(9)) < 0.6
    mask[0] = False
    mask[1] = True
    return mask


def sums(losses: Tensor, mask: Tensor | None) -> tuple[list[float], list[int]]:
    """Each row's summed loss and number of supervised entries, one entry at a time."""
    values = losses.double().reshape(5, -1).tolist()
    flags = [[True] * len(row) for row in values]
    if mask is not None:
        flags = mask.reshape(5, -1).tolist()
    kept = [
        [v for v, flag in zip(row, row_flags, strict=True) if flag]
        for row, row_flags in zip(values, flags, strict=True)
    ]
    return [math.fsum(row) for row in kept], [len(row) for row in kept]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_per_sample_are_means(shape: tuple[int, ...], masked: bool) -> None:
    losses, mask = losses_of(shape), mask_of(shape) if masked else None
    rows = DomainLossScaler("sample").rows(losses, DRAW, mask)
    totals, tokens = sums(losses, mask)
    means = [total / max(n, 1) for total, n in zip(totals, tokens, strict=True)]
    np.testing.assert_allclose(rows.values, means, rtol=1e-14)
    assert rows.values.dtype == torch.float64
    assert rows.tokens.tolist() == tokens


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_rows_per_token_are_sums(shape: tuple[int, ...], masked: bool) -> None:
    losses, mask = losses_of(shape), mask_of(shape) if masked else None
    rows = DomainLossScaler("token").rows(losses, DRAW, mask)
    totals, tokens = sums(losses, mask)
    np.testing.assert_allclose(rows.values, totals, rtol=1e-14)
    assert rows.tokens.tolist() == tokens


@pytest.mark.parametrize("unit", ["sample", "token"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_reduced_in_float32(unit: str, dtype: torch.dtype) -> None:
    losses = (100.0 * losses_of((5, 3000))).to(dtype)  # sums beyond the range of float16
    rows = DomainLossScaler(unit).rows(losses, DRAW, None)
    totals, tokens = sums(losses, None)
    scale = tokens if unit == "sample" else [1] * 5
    expected = [total / n for total, n in zip(totals, scale, strict=True)]
    assert rows.values.dtype == torch.float32
    np.testing.assert_allclose(rows.values, expected, rtol=1e-5)


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_masked_losses_count_nothing_even_where_they_are_not_finite(unit: str) -> None:
    losses = losses_of((5, 2))
    losses[:, 1] = torch.tensor([math.nan, math.inf, 0.0, -math.inf, math.nan])
    losses.requires_grad_()
    mask = torch.tensor([[1, 0]] * 5)
    rows = DomainLossScaler(unit).rows(losses, DRAW, mask)
    assert torch.equal(rows.values, losses[:, 0])
    rows.values.sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[1.0, 0.0]] * 5


@pytest.mark.parametrize(
    ("unit", "losses", "mask", "error", "message"),
    [
        ("sample", 0.5, None, TypeError, r"losses must be a tensor; got float\."),
        ("sample", torch.tensor(1.0), None, ValueError, r"losses .* got a scalar\. .*reduction="),
        ("sample", torch.ones(4), None, ValueError, r"losses must have the draw's 5 rows .*\(4,\)"),
        ("token", torch.ones(20), None, ValueError, r"losses must .*\(20,\)\. Reshape \(B·T,\)"),
        (
            "sample",
            torch.ones(5, 4),
            torch.ones(5),
            ValueError,
            r"mask must have the shape of losses \(5, 4\); got \(5,\)\.",
        ),
        ("token", torch.ones(5), None, ValueError, r'losses must .*\(B, T\) with unit="token"'),
    ],
)
def test_odd_losses_are_refused(
    unit: str, losses: Any, mask: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        DomainLossScaler(unit).rows(losses, DRAW, mask)


def rows_of(unit: str, masked: bool) -> tuple[RowLosses, list[float], list[int]]:
    """Row losses that require gradients, and the same written out."""
    losses, mask = losses_of((5, 4)), mask_of((5, 4)) if masked else None
    rows = DomainLossScaler(unit).rows(losses, DRAW, mask)
    totals, tokens = sums(losses, mask)
    if unit == "sample":
        totals = [total / max(n, 1) for total, n in zip(totals, tokens, strict=True)]
    return RowLosses(rows.values.requires_grad_(), rows.tokens), totals, tokens


def check_factors(total: Tensor, factors: Tensor, rows: RowLosses, expected: list[float]) -> None:
    """Factors are what is expected, and the gradient of the total by each row's loss."""
    (gradient,) = torch.autograd.grad(total, rows.values)
    np.testing.assert_allclose(gradient, expected, rtol=1e-13)
    np.testing.assert_allclose(factors, expected, rtol=1e-13)
    assert factors.dtype == torch.float64
    assert not factors.requires_grad


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("unit", "lengths"), [("sample", [1.0, 1.0, 1.0]), ("token", [4.0, 2.5, 3.0])]
)
def test_weighted_is_the_objective_written_out(
    unit: str, lengths: list[float], masked: bool
) -> None:
    """Σ_j π w ℓ_j / (share N T̄), with the share the row was drawn with."""
    rows, losses, _ = rows_of(unit, masked)
    total, factors = DomainLossScaler(unit).weighted(
        rows, DRAW, WEIGHTS, lengths=np.array(lengths), micro_rows=20
    )
    pi, w = WEIGHTS.importance, WEIGHTS.loss
    expected = [float(pi[d] * w[d]) / (SHARES[d] * 20 * lengths[d]) for d in DOMAINS]
    check_factors(total, factors, rows, expected)
    written_out = math.fsum(f * loss for f, loss in zip(expected, losses, strict=True))
    assert float(total.detach()) == pytest.approx(written_out, rel=1e-13)


def test_weighted_divides_by_the_draws_shares_not_by_todays() -> None:
    rows, _, _ = rows_of("sample", masked=False)
    arguments: dict[str, Any] = {"lengths": np.ones(3), "micro_rows": 5}
    other = Weights(SHARES, WEIGHTS.loss, WEIGHTS.importance)
    results = [
        DomainLossScaler("sample").weighted(rows, DRAW, weights, **arguments)[1]
        for weights in (WEIGHTS, other)
    ]
    assert torch.equal(*results)


def test_weighted_leaves_out_a_domain_that_does_not_count() -> None:
    draw = draw_of([0, 0, 0, 0, 0], [1.0, 0.0, 0.0])
    weights = Weights([1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.5, 0.25, 0.25])
    rows = RowLosses(torch.ones(5), torch.ones(5))
    total, factors = DomainLossScaler("sample").weighted(
        rows, draw, weights, lengths=np.ones(3), micro_rows=5
    )
    assert factors.tolist() == pytest.approx([0.2] * 5)
    assert float(total) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shape", "way_on"),
    [
        ((9, 5), r"Put rows first: losses\.transpose\(0, 1\)"),  # (T, B), as CTC has it
        ((10,), r"Reshape \(B·T,\) losses to \(B, T\); of several losses per row"),
        ((4,), "If collate_fn left out rows, return placeholder rows"),
    ],
)
def test_losses_of_other_rows_name_the_way_on(shape: tuple[int, ...], way_on: str) -> None:
    draw = draw_of([0, 0, 1, 1, 1], [0.4, 0.6])
    with pytest.raises(ValueError, match=rf"the draw's 5 rows first; got .*{way_on}"):
        DomainLossScaler("sample").rows(torch.ones(shape), draw, None)


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RowLengthWarning")
@pytest.mark.parametrize("known", [True, False])
def test_rows_without_labels_have_no_loss(known: bool) -> None:
    """The mean is over rows that have one: half of domain "b" have none, and weigh nothing."""
    rows = {"a": list(range(50)), "b": list(range(50))}
    controller = Controller(
        Mixture(rows, importance={"a": 1.0, "b": 1.0}),
        policy="static",
        lag=0,
        update_every=1,
        tokens_per_row={"a": 1.0, "b": 0.5} if known else None,
    )
    totals = []
    for _, draw in controller.loader(20, steps=400).with_draws():
        losses = torch.ones(20, 2)
        alive = (draw.domains == 0) | (draw.rows % 2 == 0)
        loss = controller.loss(losses, draw=draw, mask=alive.unsqueeze(1).expand(20, 2))
        totals.append(float(loss))
        controller.step()
    # All losses are 1, and so is the objective. A step's standard deviation is at most .5.
    settled = totals if known else totals[100:]
    assert sum(settled) / len(settled) == pytest.approx(1.0, abs=5 * 0.5 / len(settled) ** 0.5)
