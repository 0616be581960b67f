"""Losses of tokens, of spans and of rows that nothing is said of: the stated means, exactly.

Also tests ``trainers/_labels.py``, ``adaptmix_transformers/_rows.py`` and
``adaptmix_transformers/_shift.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    Trainer,
)

from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.losses import (
    MicroBatch,
    compare,
    stack,
)

BOUND = 1e-9
LENGTHS = {"a": (3, 5), "b": (8, 12)}


def texts(seed: int = 0, *, rows: int = 90, classes: int = 4, masked: float = 0.0) -> Dataset:
    """Rows with a label for each token; of domain "b" a share of rows has none."""
    generator = torch.Generator().manual_seed(seed)
    listed = []
    for i in range(rows):
        name = "ab"[i % 3 == 0]
        low, high = LENGTHS[name]
        length = int(torch.randint(low, high, (), generator=generator))
        ids = torch.randint(3, hf.VOCABULARY, (length,), generator=generator)
        labels = torch.where(ids % 7 == 0, 1 + ids % (classes - 1), 0)
        if name == "b" and float(torch.rand((), generator=generator)) < masked:
            labels = torch.full_like(labels, -100)
        listed.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "source": name})
    return Dataset.from_list(listed)


def mean_length(data: Any, *, shifted: bool = False) -> dict[str, float]:
    """Mean supervised tokens per row."""
    counts: dict[str, list[int]] = {}
    for row in data:
        kept = row["labels"][int(shifted) :]
        counts.setdefault(row["source"], []).append(sum(label != -100 for label in kept))
    return {name: sum(each) / len(each) for name, each in counts.items()}


class Tagger(nn.Module):
    """A model of one's own; ``shifted`` labels are those of the next token."""

    def __init__(self, *, shifted: bool = False, classes: int = 4, weighted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Embedding(hf.VOCABULARY, 16)
        self.out = nn.Linear(16, classes)
        self.shifted = shifted
        weights = torch.arange(1.0, classes + 1).square() if weighted else torch.ones(classes)
        self.register_buffer("weights", weights)
        self.double()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted mean over all supervised tokens."""
        logits = self.out(torch.tanh(self.body(input_ids)))
        if labels is None:
            return {"logits": logits}
        losses, factors = self.tokens(logits, labels)
        return {"loss": (losses * factors).sum() / factors.sum(), "logits": logits}

    def tokens(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) losses, and factors that are 0 where nothing is supervised."""
        if self.shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        weights: Any = self.weights
        return losses, torch.where(labels == -100, 0.0, weights[labels.clamp(min=0)])


def by_domain(batch: MicroBatch, values: Tensor, lengths: dict[str, float]) -> Tensor:
    """(B,) values over the mean length of each row's domain."""
    per_row = torch.tensor([lengths[name] for name in sorted(lengths)], dtype=torch.float64)
    return values / per_row[batch.draw.domains]


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("unit", ["token", "sample"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_own_models_with_token_labels(
    accumulation: int, unit: str, shifted: bool, tmp_path: Path
) -> None:
    data = texts()
    lengths = mean_length(data, shifted=shifted)

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        logits = model(batch.inputs["input_ids"])["logits"]
        losses, kept = model.tokens(logits, batch.inputs["labels"])
        totals = (losses * kept).sum(1)
        if unit == "sample":
            mean: Tensor = (batch.multipliers * totals / kept.sum(1)).mean()
            return mean / accumulation
        # The multiplier of rows: its share of tokens over its mean length.
        value: Tensor = (batch.multipliers * by_domain(batch, totals, lengths)).mean()
        return value / accumulation

    errors, callback = compare(
        tmp_path,
        expected,
        model=Tagger(shifted=shifted),
        data=data,
        collator=hf.pad,
        settings={"unit": unit},
        gradient_accumulation_steps=accumulation,
    )
    assert len(errors) == 12
    assert max(errors) < BOUND
    if unit == "token":
        got = callback.controller._measurements.lengths.tolist()
        assert got == pytest.approx([lengths["a"], lengths["b"]])


@pytest.mark.parametrize("unit", ["token", "sample"])
def test_class_weights_of_tokens_are_kept(unit: str, tmp_path: Path) -> None:
    """Their divisor too: it is that of the batch, whatever classes it has."""
    data = texts(1)
    lengths = mean_length(data)

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        logits = model(batch.inputs["input_ids"])["logits"]
        losses, factors = model.tokens(logits, batch.inputs["labels"])
        multipliers = batch.multipliers
        if unit == "token":
            shares = torch.from_numpy(batch.draw.row_shares)
            per_row = torch.tensor([lengths["a"], lengths["b"]], dtype=torch.float64)
            multipliers = multipliers * (shares @ per_row) / per_row[batch.draw.domains]
        total: Tensor = (multipliers * (losses * factors).sum(1)).sum() / factors.sum()
        return total

    errors, _ = compare(
        tmp_path,
        expected,
        model=Tagger(weighted=True),
        data=data,
        collator=hf.pad,
        settings={"unit": unit},
    )
    assert max(errors) < BOUND


def small(kind: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    quiet: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=hf.VOCABULARY, intermediate_size=16, **shape, **quiet, **changes)
    return kind(config).double()


def test_token_classification_of_transformers(tmp_path: Path) -> None:
    data = texts(2)
    lengths = mean_length(data)

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits.transpose(1, 2)
        losses = F.cross_entropy(logits, batch.inputs["labels"], reduction="none")
        return (batch.multipliers * by_domain(batch, losses.sum(1), lengths)).mean()

    errors, _ = compare(
        tmp_path,
        expected,
        model=small(BertForTokenClassification, num_labels=4),
        data=data,
        collator=hf.pad,
        settings={"unit": "token"},
    )
    assert max(errors) < BOUND


def test_two_logits_of_one_answer(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(60):
        ids = torch.randint(3, hf.VOCABULARY, (8,), generator=generator).tolist()
        ends = {"start_positions": i % 5, "end_positions": i % 5 + 2}
        rows.append({"input_ids": ids, "source": "ab"[i % 3 == 0], **ends})

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        outputs = model(input_ids=batch.inputs["input_ids"])
        losses = [
            F.cross_entropy(logits, batch.inputs[name], reduction="none")
            for logits, name in (
                (outputs.start_logits, "start_positions"),
                (outputs.end_logits, "end_positions"),
            )
        ]
        return (batch.multipliers * (losses[0] + losses[1]) / 2).mean()

    errors, _ = compare(
        tmp_path,
        expected,
        model=small(BertForQuestionAnswering),
        data=Dataset.from_list(rows),
        collator=stack,
    )
    assert max(errors) < BOUND


@pytest.mark.parametrize("own", [True, False])
def test_a_row_without_labels_has_no_loss(own: bool, tmp_path: Path) -> None:
    """The objective is the mean over rows that have one, in expectation."""
    data = texts(3, masked=0.4)
    supervised = [any(y != -100 for y in row["labels"]) for row in data if row["source"] == "b"]
    rates = torch.tensor([1.0, sum(supervised) / len(supervised)], dtype=torch.float64)

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs)["logits"].transpose(1, 2)
        labels = batch.inputs["labels"]
        losses = F.cross_entropy(logits, labels, reduction="none").sum(1)
        means = losses / (labels != -100).sum(1).clamp(min=1)
        return (batch.multipliers * means / rates[batch.draw.domains]).mean()

    model = Tagger() if own else small(BertForTokenClassification, num_labels=4)
    errors, _ = compare(tmp_path, expected, model=model, data=data, collator=hf.pad)
    assert max(errors) < BOUND


class Summed(Trainer):
    """A compute_loss that counts tokens itself."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the mean over the tokens of the step."""
        logits = model(inputs["input_ids"])["logits"]
        losses, kept = model.tokens(logits, inputs["labels"])
        return (losses * kept).sum() / kwargs["num_items_in_batch"]


def test_a_compute_loss_that_divides_by_the_tokens_of_the_step(tmp_path: Path) -> None:
    data = texts(4)
    lengths = mean_length(data)

    def expected(model: Any, batch: MicroBatch) -> Tensor:
        losses, kept = model.tokens(
            model(batch.inputs["input_ids"])["logits"], batch.inputs["labels"]
        )
        return (batch.multipliers * by_domain(batch, (losses * kept).sum(1), lengths)).mean() / 2

    class Counted(Tagger):
        """Takes keywords, so that the trainer counts tokens."""

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor | None = None,
            labels: Tensor | None = None,
            **_: Any,
        ) -> Any:
            return super().forward(input_ids, labels=labels)

    errors, _ = compare(
        tmp_path,
        expected,
        model=Counted(),
        data=data,
        collator=hf.pad,
        kind=Summed,
        settings={"unit": "token"},
        gradient_accumulation_steps=2,
    )
    assert max(errors) < BOUND
