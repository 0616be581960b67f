"""Numbers, flags, spans and choices as targets of the Hugging Face Trainer's users."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import by_row, cross_entropy, logits_of, trainer, with_loss


def root_mean_square(logits: Tensor, labels: Tensor) -> Tensor:
    """The root of the mean squared error: rows are not apart."""
    return (logits.squeeze(1) - labels).square().mean().sqrt()


def _regression() -> list[Case]:
    one = data.bert(BertForSequenceClassification, num_labels=1)
    texts = [t | {"labels": float(len(t["input_ids"]))} for t in data.texts()]
    flags = [
        t | {"labels": [float(i in t["input_ids"]) for i in range(3, 3 + data.CLASSES)]}
        for t in data.texts()
    ]
    several = data.bert(BertForSequenceClassification, problem_type="multi_label_classification")
    weight = torch.tensor([1.0, 3.0, 2.0, 0.5], dtype=torch.float64)

    def squared(model: Any, batch: Any) -> Tensor:
        result: Tensor = (logits_of(model, batch).squeeze(1) - batch["labels"]).square().mean()
        return result

    def huber(z: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(z.squeeze(1), y)

    def absolute(z: Tensor, y: Tensor) -> Tensor:
        return F.l1_loss(z.squeeze(1), y)

    def flagged(z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, y, pos_weight=weight.to(z.device))

    return [
        trainer("BERT regression", one, texts, row_loss=squared, expect="right"),
        trainer(
            "Huber loss", one, texts, kind=with_loss(huber), row_loss=by_row(huber), expect="right"
        ),
        trainer(
            "absolute error",
            one,
            texts,
            kind=with_loss(absolute),
            row_loss=by_row(absolute),
            expect="right",
        ),
        trainer(
            "root mean squared error",
            one,
            texts,
            kind=with_loss(root_mean_square),
            row_loss=squared,
            expect="row",
        ),
        trainer(
            "BERT with several labels",
            several,
            flags,
            row_loss=by_row(lambda z, y: F.binary_cross_entropy_with_logits(z, y)),
            expect="right",
        ),
        trainer(
            "positive weights",
            several,
            flags,
            kind=with_loss(flagged),
            row_loss=by_row(flagged),
            expect="right",
        ),
    ]


def _spans() -> list[Case]:
    # Of one length: padded positions are part of BERT's softmax, so that a row's loss would depend
    # on the others of its batch.
    rows = [
        t | {"start_positions": 1, "end_positions": 3 + i % 5}
        for i, t in enumerate(data.texts(length=8))
    ]

    def span(model: Any, batch: Any) -> Tensor:
        given = {k: v for k, v in batch.items() if not k.endswith("_positions")}
        outputs = model(**given)
        start = F.cross_entropy(outputs.start_logits, batch["start_positions"])
        return (start + F.cross_entropy(outputs.end_logits, batch["end_positions"])) / 2

    chosen = [
        {"input_ids": [t["input_ids"][:4], t["input_ids"][-4:]], "labels": i % 2}
        for i, t in enumerate(data.texts(length=8))
    ]
    return [
        trainer(
            "question answering",
            data.bert(BertForQuestionAnswering, num_labels=2),
            rows,
            row_loss=span,
        ),
        trainer(
            "multiple choice",
            data.bert(BertForMultipleChoice),
            chosen,
            collate=data.stack,
            expect="right",
            row_loss=cross_entropy,
        ),
    ]


CASES = [*_regression(), *_spans()]
