"""Batches that collators and hooks change, leave out or put into another order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
)

from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_lightning.refusing import refused

pytestmark = pl.FILTERS


def test_a_batch_whose_rows_were_changed() -> None:
    class Drops(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx)[:5]

    with pytest.raises(ValueError, match="the draw's 12 rows"):
        pl.trainer(AdaptMixCallback(), max_epochs=1).fit(Drops(), pl.loader())


class Collator:
    """Stacks rows; some batches come as None, or without some rows, or sorted."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, rows: Any) -> Any:
        if self.kind == "none" and int(rows[0][2]) % 3 == 0:
            return None
        if self.kind == "drops":
            rows = [row for row in rows if int(row[2]) % 7]
        if self.kind == "sorts":
            rows = sorted(rows, key=lambda row: float(row[0][0]))
        return torch.utils.data.default_collate(rows)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("none", "must make a batch of its 12 rows; got None.*placeholder rows"),
        ("sorts", "must keep rows in the order it is given them"),
    ],
)
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_collators_that_leave_out_batches_or_sort(kind: str, match: str, workers: int) -> None:
    data = pl.loader(collate_fn=Collator(kind), num_workers=workers)
    refused(match, data=data, max_epochs=4)


# Where the first row is one that is dropped, copies of it make no batch, and nothing is shown.
@pytest.mark.filterwarnings("ignore:It could not be checked whether collate_fn")
def test_rows_left_out_of_a_batch() -> None:
    for head in (None, "net"):
        trainer = pl.trainer(AdaptMixCallback(head=head, policy="static"), max_epochs=4)
        with pytest.raises(ValueError, match="the draw's 12 rows"):
            trainer.fit(
                pl.Classifier(per_sample=head is None), pl.loader(collate_fn=Collator("drops"))
            )


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None")
def test_a_batch_that_a_hook_leaves_out() -> None:
    """Every later batch would have been weighted by the domains of the one before."""

    class Skips(pl.Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return None if int(batch[2][0]) % 3 == 0 else batch

    refused("Every batch must be trained; . before this one did not reach", Skips(), max_epochs=4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_numbers_travel_with_batches_that_hooks_replace(accumulation: int) -> None:
    """Rows are those of the draw, in every epoch and after a validation in the middle."""

    class Replaces(pl.Classifier):
        drawn: list[Any]

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return tuple(part.clone() for part in batch)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert mixer._weighting is not None
            draw = mixer._weighting._draw
            assert draw is not None
            self.drawn.append((batch[2], draw.rows - starts[draw.domains]))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    module = Replaces()
    module.drawn = []
    starts = torch.tensor([0, *runs.SIZES]).cumsum(0)
    mixer = AdaptMixCallback(policy="static")
    trainer = pl.trainer(
        mixer, max_epochs=3, accumulate_grad_batches=accumulation, val_check_interval=2
    )
    trainer.fit(module, pl.loader(), DataLoader(pl.dataset(), batch_size=12))
    drawn = module.drawn  # as of a module's own, without the passes of the proof
    assert len(drawn) == (24 if accumulation == 2 else 21)
    for rows, expected in drawn:
        assert torch.equal(rows, expected)


@pytest.mark.parametrize("head", [None, "net"])
@pytest.mark.parametrize("later", [False, True])
def test_rows_that_the_module_puts_into_another_order(head: str | None, later: bool) -> None:
    class Sorts(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if later and self.global_step < 5:
                return super().training_step(batch, batch_idx)
            order = batch[0][:, 0].argsort()
            return super().training_step([part[order] for part in batch], batch_idx)

    mixer = AdaptMixCallback(head=head, policy="static", update_every=3)
    with pytest.raises(
        ObjectiveError, match="training_step must keep rows in the order of the batch"
    ):
        pl.trainer(mixer, max_epochs=3).fit(Sorts(per_sample=head is None), pl.loader())
    assert mixer.controller.completed == (5 if later else 0)
