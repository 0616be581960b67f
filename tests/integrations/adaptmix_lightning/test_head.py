"""Rows are weighted at a head only where the loss is a mean of one term per row of its output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from tests.integrations.adaptmix_lightning import pl

pytestmark = pl.FILTERS


def test_a_head_that_is_not_there_or_not_called() -> None:
    for head, error in (("nothing", ValueError), ("spare", ObjectiveError)):
        module = pl.Classifier(per_sample=False)
        module.spare = torch.nn.Linear(2, 2)
        trainer = pl.trainer(AdaptMixCallback(head=head), max_epochs=1)
        with pytest.raises(error, match="head"):
            trainer.fit(module, pl.loader())


def test_a_head_that_the_loss_does_not_use() -> None:
    class Unused(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets, _ = batch
            self.net(inputs)  # the head's output is thrown away
            return F.cross_entropy(self.net[0](inputs)[:, :4], targets)

    trainer = pl.trainer(AdaptMixCallback(head="net.2", policy="static"), max_epochs=1)
    with pytest.raises(ObjectiveError, match="must be what the loss is computed from; got 0"):
        trainer.fit(Unused(), pl.loader())


class Tags(pl.Classifier):
    """A mean over the targets that count, of four in each row."""

    def __init__(self, ignored: Any, **options: Any) -> None:
        super().__init__(per_sample=False)
        self.head = torch.nn.Linear(4, 12).double()
        self.ignored, self.options = ignored, options

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets, rows = batch
        logits = self.head(self.net(inputs)).view(len(rows), 4, 3)
        labels = (targets.unsqueeze(1) + torch.arange(4)) % 3
        labels = labels.masked_fill(self.ignored(rows), -100)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), **self.options)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_a_mean_over_targets_that_count(options: dict[str, Any]) -> None:
    def some(rows: torch.Tensor) -> torch.Tensor:
        return torch.arange(4) >= 1 + (rows % 3).unsqueeze(1)

    def late(rows: torch.Tensor) -> torch.Tensor:
        return some(rows) if int(rows[0]) % 5 == 1 else torch.zeros(len(rows), 4).bool()

    def alike(rows: torch.Tensor) -> torch.Tensor:
        return (torch.arange(4) == (rows % 4).unsqueeze(1)).bool()

    for ignored in (some, late):
        trainer = pl.trainer(AdaptMixCallback(head="head", policy="static"), max_epochs=9)
        with pytest.raises(ObjectiveError, match=r"mean of one term per row; .*loss_mask"):
            trainer.fit(Tags(ignored, **options), pl.loader())
    mixer = AdaptMixCallback(head="head", policy="static")
    pl.trainer(mixer, max_epochs=1).fit(Tags(alike, **options), pl.loader())
    assert mixer.controller.completed == 7


class Headed(pl.Classifier):
    """Ends in two layers and a loss of the test's choice."""

    def __init__(self, loss: Any) -> None:
        super().__init__(per_sample=False)
        self.loss = loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets, _ = batch
        return self.loss(self, self.net(inputs), targets)


def centred(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss whose rows meet: each logit is compared with the batch's mean."""
    return F.cross_entropy(logits - logits.mean(0), targets)


@pytest.mark.parametrize(
    ("head", "loss", "match"),
    [
        ("net.0", lambda _, z, y: F.cross_entropy(z, y), "must be the last module that has param"),
        ("net.2", lambda _, z, y: centred(z, y), "a sum of one term per row; in this one"),
        ("net.2", lambda m, z, y: F.cross_entropy(z, y) * m.net[2].bias.square().sum(), "beside"),
    ],
)
def test_losses_that_are_no_sum_over_rows_of_the_head(head: str, loss: Any, match: str) -> None:
    trainer = pl.trainer(AdaptMixCallback(head=head, policy="static"), max_epochs=1)
    with pytest.raises(ObjectiveError, match=match):
        trainer.fit(Headed(loss), pl.loader())


def test_a_loss_that_couples_rows_later() -> None:
    """In its eighth step, and observed ones find it."""

    def late(module: Any, logits: Any, targets: Any) -> Any:
        if module.global_step < 7:
            return F.cross_entropy(logits, targets)
        return centred(logits, targets)

    mixer = AdaptMixCallback(head="net.2", policy="static", update_every=4)
    with pytest.raises(ObjectiveError, match="one term per row; in this one"):
        pl.trainer(mixer, max_epochs=4).fit(Headed(late), pl.loader())
    assert mixer.controller.completed <= 7 + 4


def test_penalties_stay_as_they_are_at_a_head() -> None:
    def penalised(module: Any, logits: Any, targets: Any) -> Any:
        return F.cross_entropy(logits, targets) + sum(p.square().sum() for p in module.parameters())

    mixer = AdaptMixCallback(head="net.2", policy="static")
    pl.trainer(mixer, max_epochs=1).fit(Headed(penalised), pl.loader())
    assert mixer.controller.completed == 7
