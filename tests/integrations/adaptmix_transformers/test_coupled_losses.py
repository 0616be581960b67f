"""Losses that are no sum over rows are refused.

Also tests ``adaptmix_transformers/_late_choices.py`` and ``adaptmix_transformers/_rehearsal.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from adaptmix.errors import ObjectiveError
from tests.integrations.adaptmix_transformers.losses import (
    Net,
    bert,
    compare,
    rare,
)
from tests.integrations.adaptmix_transformers.overrides import (
    BOUND,
    between_rows,
    contrastive,
    cross_entropy,
    focal,
    hardest,
    mean_of,
    overridden,
    pairwise_hinge,
    plain,
    root_mean_square,
    self_normalised,
)


@pytest.mark.parametrize(
    "loss",
    [contrastive, pairwise_hinge, hardest, between_rows, self_normalised, root_mean_square],
)
@pytest.mark.parametrize("inside", [False, True])
def test_losses_that_compare_rows_are_refused(inside: bool, loss: Any, tmp_path: Path) -> None:
    how: dict[str, Any] = (
        {"model": Net(lambda logits, labels: loss(logits, labels, None), outputs=2)}
        if inside
        else {"kind": overridden(loss)}
    )
    with pytest.raises(ObjectiveError, match="must be a sum of one term per row"):
        compare(tmp_path, mean_of(cross_entropy), data=rare(0), **how)


class LateChoice(Trainer):
    """From its sixth step on it leaves rows out, by a mask that the graph does not show."""

    choose: Callable[[Tensor], Tensor]
    calls = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A mean of focal losses, of all rows and later of some."""
        self.calls += 1
        losses = focal(model(input_ids=inputs["input_ids"])["logits"], inputs["labels"])
        return type(self).choose(losses) if self.calls > 5 else losses.mean()


@pytest.mark.parametrize(
    "choose",
    [
        lambda losses: losses[losses >= losses.median()].mean(),
        lambda losses: (losses * (losses >= losses.median())).sum() / 4,
        lambda losses: (losses * losses.argsort().argsort()).mean(),
    ],
)
def test_a_choice_of_rows_that_begins_in_mid_run_is_found(choose: Any, tmp_path: Path) -> None:
    kind = type("Own", (LateChoice,), {"choose": staticmethod(choose)})
    settings = {"measure_every": 1, "update_every": 1}
    with pytest.raises(ObjectiveError, match="must be a sum of one term per row"):
        compare(tmp_path, mean_of(focal), kind=kind, settings=settings)


class Normed(Net):
    """Batch normalisation below the logits."""

    def __init__(self, loss: Any) -> None:
        super().__init__(loss, outputs=2)
        self.norm = nn.BatchNorm1d(16).double()

    def hidden(self, input_ids: Tensor) -> Tensor:
        """(B, 16)."""
        return torch.as_tensor(self.norm(super().hidden(input_ids)))


@pytest.mark.parametrize("refused", [True, False])
def test_batch_normalisation_hides_no_coupling(refused: bool, tmp_path: Path) -> None:
    if refused:
        model = Normed(lambda z, y: pairwise_hinge(z, y, None))
        with pytest.raises(ObjectiveError, match="must be a sum of one term per row"):
            compare(tmp_path, mean_of(cross_entropy), model=model)
        return
    model = Normed(plain)
    errors, _ = compare(tmp_path, mean_of(cross_entropy), model=model, max_steps=3)
    assert max(errors) < BOUND


def test_losses_without_a_second_derivative_are_tried_on_other_rows(tmp_path: Path) -> None:
    """Connectionist temporal classification has none."""

    def ctc(logits: Tensor, labels: Tensor) -> Tensor:
        spread = logits.unsqueeze(0) * torch.arange(1.0, 6.0).reshape(5, 1, 1)
        sizes = torch.full((len(logits),), 5), torch.ones(len(logits), dtype=torch.long)
        targets = (labels + 1).unsqueeze(1)
        return F.ctc_loss(spread.log_softmax(-1), targets, *sizes, reduction="none")

    errors, _ = compare(
        tmp_path,
        mean_of(ctc),
        model=bert(num_labels=4),
        kind=overridden(lambda z, y, _: ctc(z, y).mean()),
    )
    assert max(errors) < BOUND
