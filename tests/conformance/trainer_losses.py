"""Losses as users of the Hugging Face Trainer write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    GPT2ForSequenceClassification,
)

from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import (
    OwnLoss,
    by_row,
    classifier,
    cross_entropy,
    gpt2,
    logits_of,
    trainer,
    with_loss,
)

WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 6.0], dtype=torch.float64)


class Weighted(OwnLoss):
    """Class-weighted cross-entropy, as thousands of notebooks have it."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the weighted mean."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        return F.cross_entropy(outputs.logits, labels, weight=WEIGHTS.to(labels.device))


def class_weighted(model: Any, batch: Any) -> Tensor:
    """Rows' parts of the class-weighted mean of a micro-batch."""
    weights = WEIGHTS[batch["labels"]]
    each = F.cross_entropy(logits_of(model, batch), batch["labels"], reduction="none")
    return weights * each / weights.sum()


def class_weighted_func(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
    """The same for ``compute_loss_func``."""
    return F.cross_entropy(outputs.logits, labels, weight=WEIGHTS.to(labels.device))


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean focal loss, row by row."""
    each = F.cross_entropy(logits, labels, reduction="none")
    return ((1.0 - torch.exp(-each)) ** 2 * each).mean()


def focal_of_the_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of the batch's mean, a slip that is often seen: rows are not apart."""
    mean = F.cross_entropy(logits, labels)
    return (1.0 - torch.exp(-mean)) ** 2 * mean


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean label-smoothed cross-entropy."""
    return F.cross_entropy(logits, labels, label_smoothing=0.2)


class Anchored(OwnLoss):
    """A penalty towards the initial weights, which is 0 in the first step."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the model's loss and the penalty."""
        if not hasattr(self, "anchor"):
            self.anchor = [p.detach().clone() for p in model.parameters()]
        pairs = zip(model.parameters(), self.anchor, strict=True)
        penalty = sum(((p - a) ** 2).sum() for p, a in pairs)
        outputs = model(**inputs)
        result: Tensor = outputs.loss + 5.0 * penalty
        return result


def anchor_penalty(make: Any) -> Any:
    """The penalty of ``Anchored``, for a model that ``make`` makes anew."""
    start = [p.detach().clone() for p in make().parameters()]
    return lambda model: (
        5.0 * sum(((p - a) ** 2).sum() for p, a in zip(model.parameters(), start, strict=True))
    )


def l1(model: Any) -> Tensor:
    """An L1 penalty on all parameters."""
    total: Tensor = sum((p.abs().sum() for p in model.parameters()), torch.zeros(()))
    return 1e-2 * total


def l2(model: Any) -> Tensor:
    """A strong L2 penalty on all parameters."""
    total: Tensor = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
    return 100.0 * total


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(logits, labels)


def rows_of_classes(outputs: Any, inputs: Any) -> Tensor:
    """What a user passes as ``loss=``."""
    return F.cross_entropy(outputs.logits, inputs["labels"], reduction="none")


def pairs_apart(logits: Tensor, _: Tensor) -> Tensor:
    """In-batch contrastive loss: every row is compared with the others."""
    unit = F.normalize(logits, dim=1)
    return F.cross_entropy(unit @ unit.T / 0.5, torch.arange(len(unit), device=unit.device))


def pairwise_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Ranks rows of a batch by their labels; its second derivatives are 0."""
    score = logits[:, 0]
    above = labels.unsqueeze(1) > labels.unsqueeze(0)
    return (torch.relu(1.0 - (score.unsqueeze(1) - score.unsqueeze(0))) * above).mean()


def diverse(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy less the entropy of the batch's mean prediction."""
    mean = logits.softmax(1).mean(0)
    return F.cross_entropy(logits, labels) + (mean * mean.log()).sum()


CLASSIFIED = data.classified()
RARE = data.classified(rare=0.03)


def _classification() -> list[Case]:
    base = classifier()
    row: dict[str, Any] = {"row_loss": cross_entropy}
    terms: dict[str, Any] = {"terms": class_weighted}
    return [
        trainer("BERT classifier", base, CLASSIFIED, expect="right", **row),
        trainer(
            "BERT classifier, accumulation",
            base,
            CLASSIFIED,
            arguments={"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4},
            expect="right",
            **row,
        ),
        trainer(
            "BERT classifier, workers",
            base,
            CLASSIFIED,
            arguments={"dataloader_num_workers": 2},
            callback={"lag": 8},
            expect="right",
            policies=("forced",),
            **row,
        ),
        trainer(
            "class weights in compute_loss", base, RARE, kind=Weighted, expect="right", **terms
        ),
        trainer(
            "class weights in compute_loss_func",
            base,
            RARE,
            options={"compute_loss_func": class_weighted_func},
            expect="right",
            **terms,
        ),
        trainer(
            "class weights and accumulation",
            base,
            CLASSIFIED,
            kind=Weighted,
            arguments={"gradient_accumulation_steps": 2},
            **terms,
        ),
        trainer(
            "label_smoothing_factor",
            base,
            CLASSIFIED,
            arguments={"label_smoothing_factor": 0.2},
            row_loss=by_row(smoothed),
            expect="right",
        ),
        trainer(
            "own label smoothing",
            base,
            CLASSIFIED,
            kind=with_loss(smoothed),
            row_loss=by_row(smoothed),
            expect="right",
        ),
        trainer(
            "focal loss",
            base,
            CLASSIFIED,
            kind=with_loss(focal),
            row_loss=by_row(focal),
            expect="right",
        ),
        trainer(
            "focal loss of the batch's mean",
            base,
            CLASSIFIED,
            kind=with_loss(focal_of_the_mean),
            row_loss=by_row(focal),
            expect="row",
        ),
        trainer(
            "penalty towards initial weights",
            base,
            CLASSIFIED,
            kind=Anchored,
            penalty=anchor_penalty(base),
            expect="right",
            **row,
        ),
        trainer(
            "L1 penalty",
            base,
            CLASSIFIED,
            kind=with_loss(plain, extra=l1),
            penalty=l1,
            expect="right",
            **row,
        ),
        trainer(
            "strong L2 penalty with loss=",
            base,
            CLASSIFIED,
            kind=with_loss(plain, extra=l2),
            callback={"loss": rows_of_classes},
            penalty=l2,
            expect="right",
            **row,
        ),
        trainer(
            "L1 penalty with head=",
            base,
            CLASSIFIED,
            kind=with_loss(plain, extra=l1),
            callback={"head": "classifier"},
            penalty=l1,
            expect="right",
            **row,
        ),
        trainer(
            "half the loss",
            base,
            CLASSIFIED,
            kind=with_loss(lambda z, y: 0.5 * F.cross_entropy(z, y)),
            row_loss=by_row(lambda z, y: 0.5 * F.cross_entropy(z, y)),
            expect="right",
        ),
        trainer(
            "sum over rows",
            base,
            CLASSIFIED,
            kind=with_loss(lambda z, y: F.cross_entropy(z, y, reduction="sum")),
            terms=lambda model, batch: F.cross_entropy(
                logits_of(model, batch), batch["labels"], reduction="none"
            ),
            expect="right",
        ),
        trainer(
            "GPT-2 classifier",
            gpt2(GPT2ForSequenceClassification, num_labels=data.CLASSES),
            CLASSIFIED,
            expect="right",
            **row,
        ),
        trainer(
            "in-batch contrastive",
            base,
            CLASSIFIED,
            kind=with_loss(pairs_apart),
            expect="row",
            **row,
        ),
        trainer(
            "pairwise hinge",
            base,
            CLASSIFIED,
            kind=with_loss(pairwise_hinge),
            expect="row",
            **row,
        ),
        trainer(
            "entropy of the batch's mean",
            base,
            CLASSIFIED,
            kind=with_loss(diverse),
            expect="row",
            **row,
        ),
    ]


CASES = _classification()
