"""A user's own losses, heads and training steps: right, or stopped by name.

Losses of ``loss=f`` are proved in ``adaptmix_transformers/_user_losses.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Trainer,
)

from adaptmix.errors import ObjectiveError
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.stepwise import Batch, check, sequences


class Network(nn.Module):
    """A model that is none of transformers', with a loss no rule gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Embedding(hf.VOCABULARY, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the mean of a loss of its own."""
        scores = self.out(self.body(input_ids).mean(1))
        if labels is None:
            return {"scores": scores}
        return {"loss": self.losses(scores, labels).mean(), "scores": scores}

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(B,) losses."""
        return F.cross_entropy(scores, labels, reduction="none").pow(1.5)


def only(features: list[dict[str, Any]]) -> Batch:
    """Rows with one label each, and no mask."""
    batch = sequences(features)
    del batch["attention_mask"]
    return batch


def network_rows(model: Any, batch: Batch) -> Tensor:
    """(B,) losses of a Network."""
    scores = model(batch["input_ids"])["scores"]
    losses: Tensor = model.losses(scores, batch["labels"])
    return losses


def test_a_users_own_losses(tmp_path: Path) -> None:
    model = Network()
    check(
        tmp_path,
        network_rows,
        model=model,
        collator=only,
        settings={
            "loss": lambda outputs, inputs: model.losses(outputs["scores"], inputs["labels"])
        },
    )


def test_a_named_head(tmp_path: Path) -> None:
    callback = check(
        tmp_path, network_rows, model=Network(), collator=only, settings={"head": "out"}
    )
    assert callback.controller.statistics.seen.sum() == 40
    assert torch.isnan(torch.from_numpy(callback.controller.statistics.loss_mean)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "neck"}, r"head must name a module of the model; got 'neck'"),
        ({"head": "out", "unit": "token"}, r'unit must be "sample" with head'),
    ],
)
def test_heads_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ObjectiveError, ValueError), match=message):
        callback = AdaptMixCallback("source", **settings)
        hf.train(tmp_path, callback, model=Network(), collator=only)


class Rescaled(Trainer):
    """A user's training_step that scales the loss behind compute_loss."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Differentiate half of the loss."""
        inputs = self._prepare_inputs(inputs)
        loss: Any = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        (0.5 * loss).backward()
        return torch.as_tensor(loss).detach()


class Forgetful(Trainer):
    """A user's training_step that passes on only what it knows."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Drop the batch's number."""
        known = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return super().training_step(model, known, *args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Rescaled, r"got \[0\.5\d*\] times the stated loss's gradient"),
        (Forgetful, r"A training batch must carry its number"),
    ],
)
def test_a_trainer_that_goes_round_the_weighting_is_stopped(
    kind: type[Trainer], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ObjectiveError, match=message):
        hf.train(tmp_path, AdaptMixCallback("source"), kind=kind)


def test_a_model_whose_loss_is_not_what_it_seems_is_stopped(tmp_path: Path) -> None:
    model = hf.llama()

    def unlike(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
        own = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return own**2

    model.loss_function = unlike
    with pytest.raises(ObjectiveError, match=r"must be a sum of one term per row"):
        hf.train(tmp_path, AdaptMixCallback("source"), model=model)


def test_rows_that_a_collator_merges_are_refused(tmp_path: Path) -> None:
    def merge(features: list[dict[str, Any]]) -> Batch:
        return {name: value[:-1] for name, value in hf.pad(features).items()}

    with pytest.raises(ObjectiveError, match=r"must have the 8 rows that were drawn; got 7"):
        hf.train(tmp_path, AdaptMixCallback("source", unit="token"), collator=merge)


def test_the_model_gets_its_loss_function_back(tmp_path: Path) -> None:
    model = hf.llama()
    before = model.loss_function
    hf.train(tmp_path, AdaptMixCallback("source"), model=model, max_steps=2)
    assert model.loss_function is before
    assert "_loss_function" not in vars(model)
    model.loss_function = before
    hf.train(tmp_path, AdaptMixCallback("source"), model=model, max_steps=2)
    assert vars(model)["_loss_function"] is before
