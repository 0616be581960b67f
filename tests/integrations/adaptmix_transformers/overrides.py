"""A user's own losses of a Trainer, and what they are written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from tests.integrations.adaptmix_transformers.losses import (
    MicroBatch,
)

BOUND = 1e-9  # of float64, in which transformers' BERT computes all of this


CLASS_WEIGHTS = torch.tensor([1.0, 50.0], dtype=torch.float64)


def logits_of(model: Any, batch: MicroBatch) -> Tensor:
    outputs = model(input_ids=batch.inputs["input_ids"])
    logits: Tensor = outputs["logits"]
    return logits


def weighted_mean(model: Any, batch: MicroBatch) -> Tensor:
    """Σ m c ℓ with c = w_y / Σ w_y."""
    labels = batch.inputs["labels"]
    losses = F.cross_entropy(logits_of(model, batch), labels, reduction="none")
    factors = CLASS_WEIGHTS[labels]
    return (batch.multipliers * factors * losses).sum() / factors.sum()


class ClassWeighted(Trainer):
    """A compute_loss of the kind that documentation shows."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Weigh the rare class up."""
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"])
        loss = F.cross_entropy(outputs["logits"], labels, weight=CLASS_WEIGHTS)
        return (loss, outputs) if kwargs.get("return_outputs") else loss


def class_weighted(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
    """The same as a compute_loss_func."""
    return F.cross_entropy(outputs.logits, labels, weight=CLASS_WEIGHTS)


class Overridden(Trainer):
    """A compute_loss made of a function of logits, labels and the model."""

    of: Callable[[Tensor, Tensor, Any], Tensor]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        outputs = model(input_ids=inputs["input_ids"])
        loss = type(self).of(outputs["logits"], inputs["labels"], model)
        return (loss, outputs) if kwargs.get("return_outputs") else loss


def overridden(function: Callable[[Tensor, Tensor, Any], Tensor]) -> type[Trainer]:
    return type("Own", (Overridden,), {"of": staticmethod(function)})


def mean_of(
    per_row: Callable[[Tensor, Tensor], Tensor],
    rest: Callable[[Any], Tensor | float] = lambda _: 0.0,
) -> Callable[[Any, MicroBatch], Tensor]:
    """What the optimizer is to see of a mean over rows, and a penalty."""

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        losses = per_row(logits_of(model, batch), batch.inputs["labels"])
        return (batch.multipliers * losses).mean() + rest(model)

    return expected


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels).mean()


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    losses = cross_entropy(logits, labels)
    return (1 - (-losses).exp()) ** 2 * losses


def contrastive(logits: Tensor, *_: Any) -> Tensor:
    return F.cross_entropy(logits @ logits.T, torch.arange(len(logits)))


def pairwise_hinge(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    scores, order = logits[:, 0], torch.sign(labels[:, None] - labels[None, :] + 0.5)
    return F.relu(0.5 - order * (scores[:, None] - scores[None, :])).mean()


def hardest(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    return cross_entropy(logits, labels).topk(3).values.mean()


def between_rows(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    scores = logits[:, 0]
    return cross_entropy(logits, labels).mean() + (scores - scores.roll(1)).abs().mean()


def self_normalised(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    losses = focal(logits, labels)
    return losses.sum() / (1 - logits.softmax(-1)[:, 0]).sum()


def root_mean_square(logits: Tensor, labels: Tensor, _: Any) -> Tensor:
    return (logits[:, 0] - labels).square().mean().sqrt()
