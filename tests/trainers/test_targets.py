"""Means over targets that count are read from the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptmix.trainers._head import scale_rows
from adaptmix.trainers._targets import uneven_targets

B, T, C = 3, 4, 5


def targets(*ignored: int) -> Tensor:
    """Targets of three rows, of which each ignores as many as told."""
    labels = torch.arange(B * T).view(B, T) % C
    for row, number in enumerate(ignored):
        labels[row, :number] = -100
    return labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(
    ("ignored", "uneven"), [((0, 0, 0), False), ((2, 2, 2), False), ((0, 2, 1), True)]
)
def test_rows_with_more_targets_than_others(
    ignored: tuple[int, ...], uneven: bool, flat: bool, smoothing: float
) -> None:
    logits, labels = torch.randn(B, T, C, requires_grad=True), targets(*ignored)
    if flat:
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    else:
        loss = F.cross_entropy(logits.mT, labels, label_smoothing=smoothing)
    found = uneven_targets(3.0 * loss + logits.square().mean(), B)
    assert found is not None
    assert bool(found) == uneven


def test_other_numbers_that_mark_ignored_targets() -> None:
    logits = torch.randn(B * T, C, requires_grad=True)
    labels = targets().flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=int(labels[0]))
    found = uneven_targets(loss, B)
    assert found is not None
    assert bool(found) == (len({int((row != labels[0]).sum()) for row in labels.view(B, T)}) > 1)


def test_sums_and_unreduced_losses_have_no_such_mean() -> None:
    logits, labels = torch.randn(B, T, C, requires_grad=True), targets(0, 2, 1)
    for reduction in ("sum", "none"):
        loss = F.cross_entropy(logits.mT, labels, reduction=reduction).sum()
        assert uneven_targets(loss, B) is None
    assert uneven_targets(logits.square().mean(), B) is None
    assert uneven_targets(torch.ones(()), B) is None


def test_what_is_below_the_head_does_not_count() -> None:
    logits, labels = torch.randn(B, T, C, requires_grad=True), targets(0, 2, 1)
    inner = F.cross_entropy(logits.mT, labels)
    head = scale_rows(inner.expand(B, 2) * 1.0, torch.ones(B))
    assert uneven_targets(head.square().mean(), B) is None
