"""Rows of similar length in one micro-batch: the step's gradient is the same, in both units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adaptmix import Controller, Domains, Mixture
from adaptmix.errors import LengthGroupingWarning
from tests import runs
from tests.elsewhere import Cycle

NAMES = ("a", "b", "c")
SIZES, LONGEST = (30, 20, 10), (4, 9, 14)
_rng = np.random.default_rng(0)
LENGTHS = np.concatenate([_rng.integers(1, m + 1, n) for n, m in zip(SIZES, LONGEST, strict=True)])
OF_DOMAIN = np.split(LENGTHS, np.cumsum(SIZES)[:-1])
MEANS = {name: float(part.mean()) for name, part in zip(NAMES, OF_DOMAIN, strict=True)}
IMPORTANCE = {"a": 0.5, "b": 0.3, "c": 0.2}

Row = tuple[Tensor, Tensor]


def rows() -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(int(length), runs.FEATURES, generator=generator, dtype=torch.float64),
            torch.randint(runs.CLASSES, (int(length),), generator=generator),
        )
        for length in LENGTHS
    ]


def pad(batch: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    inputs, targets = zip(*batch, strict=True)
    padded = pad_sequence(list(targets), batch_first=True, padding_value=-1)
    return pad_sequence(list(inputs), batch_first=True), padded, padded >= 0


def token_losses(net: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = net(inputs).transpose(1, 2)
    return F.cross_entropy(logits, targets.clamp(min=0), reduction="none")


def gradient(net: torch.nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    net.zero_grad()
    return found


def mixture() -> Mixture:
    data = rows()
    stops = np.cumsum((0, *SIZES))
    parts = {name: data[stops[i] : stops[i + 1]] for i, name in enumerate(NAMES)}
    return Mixture(parts, importance=IMPORTANCE)


def train(unit: str, tokens_per_row: Any, **options: Any) -> dict[str, Any]:
    """Four micro-batches a step, with shares that change at every step."""
    net = runs.model()
    controller = Controller(
        mixture(), net, policy=Cycle(), unit=unit, tokens_per_row=tokens_per_row, update_every=1
    )
    gradients, batches = [], []
    loader = controller.loader(5, steps=8, accumulation=4, collate_fn=pad, **options)
    for number, (inputs, targets, mask) in enumerate(loader):
        controller.loss(token_losses(net, inputs, targets), mask=mask).backward()
        batches.append(mask)
        if number % 4 == 3:
            gradients.append(gradient(net))
            controller.step()
    return {
        "gradients": torch.stack(gradients),
        "padding": 1.0 - sum(int(m.sum()) for m in batches) / sum(m.numel() for m in batches),
        "statistics": controller.statistics,
    }


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_grouping_changes_no_gradient_and_no_statistic(unit: str) -> None:
    tokens = (lambda batch: batch[2].sum(1)) if unit == "token" else None
    plain, grouped = (train(unit, tokens, **o) for o in ({}, {"row_lengths": LENGTHS}))
    torch.testing.assert_close(grouped["gradients"], plain["gradients"], rtol=1e-10, atol=1e-13)
    for name in ("seen", "loss_mean", "loss_var", "grad_var", "grad_sq", "tokens_per_row"):
        wanted = getattr(plain["statistics"], name)
        # Sketches are taken in single precision.
        np.testing.assert_allclose(getattr(grouped["statistics"], name), wanted, rtol=1e-4)
    assert grouped["padding"] < 0.6 * plain["padding"]


def test_lengths_that_are_counted_are_the_known_ones_from_the_first_step_on() -> None:
    """Of so few rows all are counted, so that even the first gradient is the same."""
    counted = train("token", lambda batch: batch[2].sum(1), row_lengths=LENGTHS)
    known = train("token", MEANS, row_lengths=LENGTHS)
    torch.testing.assert_close(counted["gradients"], known["gradients"], rtol=1e-12, atol=1e-14)


def test_a_step_of_one_micro_batch_says_that_nothing_is_grouped() -> None:
    with pytest.warns(LengthGroupingWarning, match="only one micro-batch, so nothing changes"):
        Controller(mixture()).loader(5, steps=2, row_lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"one entry per row of the mixture \(60\)"):
        Controller(mixture()).loader(5, steps=2, accumulation=2, row_lengths=[1, 2])


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_rows_of_another_loader_may_be_sorted_within_their_step(unit: str) -> None:
    """Each row brings its share along, so that it may stand in any micro-batch of its step."""
    data, net = rows(), runs.model()
    tokens = MEANS if unit == "token" else None
    stops = np.cumsum((0, *SIZES))
    drawn = np.random.default_rng(1).integers(len(data), size=20)
    domains = np.searchsorted(stops[1:], drawn, side="right")
    shares = np.linspace(0.1, 0.9, 20)
    found = []
    for order in (np.arange(20), np.argsort(-LENGTHS[drawn], kind="stable")):
        controller = Controller(
            Domains(NAMES, importance=[0.5, 0.3, 0.2]),
            policy="static",
            unit=unit,
            tokens_per_row=tokens,
        )
        controller.expect(5, steps=1, accumulation=4)
        for part in np.split(order, 4):
            inputs, targets, mask = pad([data[row] for row in drawn[part]])
            draw = controller.foreign(domains[part], shares=shares[part])
            losses = token_losses(net, inputs, targets)
            controller.loss(losses, mask=mask, draw=draw).backward()
        found.append(gradient(net))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
