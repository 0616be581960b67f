"""Losses of users of the Hugging Face Trainer: with teachers, twins, triplets and ratios."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForMaskedLM

from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import (
    OwnLoss,
    by_row,
    classifier,
    cross_entropy,
    llama,
    logits_of,
    next_tokens,
    trainer,
    with_loss,
)
from tests.conformance.trainer_modules import Net

TABLE = torch.linspace(-1.0, 1.0, data.VOCABULARY * data.CLASSES, dtype=torch.float64)
DOMAIN_WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)


def teacher(input_ids: Tensor) -> Tensor:
    """Logits of a teacher that looks at the first token."""
    return TABLE.to(input_ids.device).reshape(data.VOCABULARY, data.CLASSES)[input_ids[:, 0]].sin()


class Distilled(OwnLoss):
    """Cross-entropy, and divergence from a teacher, as a batch's mean."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss."""
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        taught = teacher(inputs["input_ids"]).softmax(1)
        soft = F.kl_div(logits.log_softmax(1), taught, reduction="batchmean")
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * soft


def distilled(model: Any, batch: Any) -> Tensor:
    """Of one row."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    taught = teacher(batch["input_ids"]).softmax(1)
    soft = F.kl_div(logits.log_softmax(1), taught, reduction="batchmean")
    return 0.5 * F.cross_entropy(logits, batch["labels"]) + 0.5 * soft


class Twice(OwnLoss):
    """Two forward passes that are to agree (R-Drop)."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss."""
        labels = inputs.pop("labels")
        return agreeing(model, inputs, labels)


def agreeing(model: Any, inputs: Any, labels: Tensor) -> Tensor:
    """Cross-entropy of one pass, and its distance from another on fewer tokens."""
    first = model(**inputs).logits
    mask = inputs["attention_mask"].clone()
    mask[:, 1] = 0
    second = model(input_ids=inputs["input_ids"], attention_mask=mask).logits
    apart = (first - second).square().sum(1).mean()
    losses: Tensor = F.cross_entropy(first, labels) + F.cross_entropy(second, labels) + apart
    return losses


def agreeing_row(model: Any, batch: Any) -> Tensor:
    """Of one row."""
    return agreeing(model, {k: v for k, v in batch.items() if k != "labels"}, batch["labels"])


class Balanced(OwnLoss):
    """Rows' weights by their class, normalised over the batch by their sum."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss."""
        labels = inputs.pop("labels")
        each = F.cross_entropy(model(**inputs).logits, labels, reduction="none")
        weights = DOMAIN_WEIGHTS.to(labels.device)[labels]
        return (weights * each).sum() / weights.sum()


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice loss over the whole batch; with one class per row, its denominator is constant."""
    chosen = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    probabilities = logits.softmax(1)
    return 1.0 - 2.0 * (probabilities * chosen).sum() / (probabilities + chosen).sum()


def dice_by_row(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice loss of each row."""
    chosen = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    probabilities = logits.softmax(1)
    return (1.0 - 2.0 * (probabilities * chosen).sum(1) / (probabilities + chosen).sum(1)).mean()


def confident(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over rows that the model is not sure of, whose number depends on the batch."""
    each = F.cross_entropy(logits, labels, reduction="none")
    unsure = (logits.softmax(1).amax(1) < 0.35).to(each.dtype)
    return (each * unsure).sum() / unsure.sum().clamp(min=1.0)


def standardised(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses over their own standard deviation in the batch."""
    each = F.cross_entropy(logits, labels, reduction="none")
    return each.mean() / each.std().detach()


def bounded(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of rows' losses, with each logit bounded."""
    return F.cross_entropy(logits.clamp(-0.05, 0.05), labels, reduction="sum")


def median(logits: Tensor, labels: Tensor) -> Tensor:
    """The median row's loss."""
    return F.cross_entropy(logits, labels, reduction="none").median()


def to_power(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest loss, smoothly."""
    each = F.cross_entropy(logits, labels, reduction="none")
    return torch.logsumexp(5.0 * each, 0) / 5.0


class Triplet(OwnLoss):
    """Three views of each row, one after the other in the model."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss."""
        return triplet(model, inputs["x"])


def triplet(model: Any, x: Tensor) -> Tensor:
    """Distances of views of the same row, with a margin."""
    first, near, far = (model(view).logits for view in (x, x + 0.1, x.flip(1)))
    return F.triplet_margin_loss(first, near, far, margin=5.0)


class Heteroscedastic(nn.Module):
    """Predicts a mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(outputs=2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """Return the negative logarithm of the likelihood, if there are labels."""
        center, spread = self.net(x).logits.unbind(1)
        if labels is None:
            return {"logits": center}
        loss = F.gaussian_nll_loss(center, labels.double(), spread.exp())
        return {"loss": loss, "logits": center}


def likelihood(model: Any, batch: Any) -> Tensor:
    """Of one row."""
    loss: Tensor = model(**batch)["loss"]
    return loss


def balanced_terms(model: Any, batch: Any) -> Tensor:
    """Rows' parts of the mean of ``Balanced``."""
    weights = DOMAIN_WEIGHTS[batch["labels"]]
    return weights * own_terms(logits_of(model, batch), batch["labels"]) / weights.sum()


def own_terms(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, row by row."""
    return F.cross_entropy(logits, labels, reduction="none")


def sure_terms(model: Any, batch: Any) -> Tensor:
    """Rows' parts of ``confident``."""
    logits = logits_of(model, batch)
    unsure = (logits.softmax(1).amax(1) < 0.35).to(logits.dtype)
    return own_terms(logits, batch["labels"]) * unsure / unsure.sum().clamp(min=1.0)


def standard_terms(model: Any, batch: Any) -> Tensor:
    """Rows' parts of ``standardised``."""
    each = own_terms(logits_of(model, batch), batch["labels"])
    return each / len(each) / each.std().detach()


def bounded_terms(model: Any, batch: Any) -> Tensor:
    """Rows' parts of ``bounded``."""
    return own_terms(logits_of(model, batch).clamp(-0.05, 0.05), batch["labels"])


def masked() -> data.Rows:
    """Rows whose third token is to be found."""
    return [
        t | {"labels": [token if i == 2 else -100 for i, token in enumerate(t["input_ids"])]}
        for t in data.texts()
    ]


def masked_loss(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Sum and number of one row's token losses."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0]
    labels = batch["labels"][0]
    kept = labels != -100
    return F.cross_entropy(logits[kept], labels[kept], reduction="sum"), kept.sum()


def _cases() -> list[Case]:
    rows, vectors = data.classified(), data.vectors()
    stacked: dict[str, Any] = {"collate": data.stack}
    net = data.built(Net)
    return [
        trainer("distillation", classifier(), rows, kind=Distilled, row_loss=distilled),
        trainer("two passes", classifier(), rows, kind=Twice, row_loss=agreeing_row),
        trainer("weights over their sum", classifier(), rows, kind=Balanced, terms=balanced_terms),
        trainer(
            "dice of the batch",
            classifier(),
            rows,
            kind=with_loss(dice),
            row_loss=by_row(dice),
        ),
        trainer(
            "dice by row",
            classifier(),
            rows,
            kind=with_loss(dice_by_row),
            row_loss=by_row(dice_by_row),
        ),
        trainer(
            "rows that are not sure",
            classifier(),
            rows,
            kind=with_loss(confident),
            terms=sure_terms,
        ),
        trainer(
            "standardised", classifier(), rows, kind=with_loss(standardised), terms=standard_terms
        ),
        trainer(
            "clamped logits",
            classifier(),
            rows,
            kind=with_loss(bounded),
            terms=bounded_terms,
            expect="right",
        ),
        trainer(
            "median row",
            classifier(),
            rows,
            kind=with_loss(median),
            row_loss=by_row(median),
            expect="row",
        ),
        trainer(
            "smooth maximum",
            classifier(),
            rows,
            kind=with_loss(to_power),
            row_loss=cross_entropy,
            expect="row",
        ),
        trainer(
            "triplets in a row",
            net,
            vectors,
            kind=Triplet,
            row_loss=lambda m, b: triplet(m, b["x"]),
            **stacked,
        ),
        trainer(
            "mean and variance",
            data.built(Heteroscedastic),
            vectors,
            row_loss=likelihood,
            **stacked,
        ),
        trainer(
            "masked language model",
            data.bert(BertForMaskedLM),
            masked(),
            row_loss=masked_loss,
            expect="right",
        ),
        trainer(
            "gradient checkpointing",
            llama(),
            data.causal(),
            row_loss=next_tokens,
            arguments={"gradient_checkpointing": True},
        ),
    ]


CASES = _cases()
