"""Modules and collators of users of the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, ViTConfig, ViTForImageClassification

from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import (
    OwnLoss,
    classifier,
    cross_entropy,
    llama,
    next_tokens,
    trainer,
)


class Net(nn.Module):
    """A user's own module on feature vectors; returns what ``output`` says."""

    def __init__(self, output: str = "dict", *, outputs: int = data.CLASSES) -> None:
        super().__init__()
        self.body = nn.Linear(data.FEATURES, 12)
        self.head = nn.Linear(12, outputs)
        self.side = nn.Linear(12, outputs) if output == "side" else None
        self.scale = nn.Parameter(torch.zeros(())) if output == "uncertain" else None
        self.norm = nn.BatchNorm1d(outputs) if output == "norm" else None
        self.output = output

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """Return a loss, if there are labels, and logits."""
        hidden = torch.tanh(self.body(x))
        logits = self.head(hidden)
        if labels is None:
            return Logits(logits)
        loss = F.cross_entropy(logits, labels)
        if self.side is not None:
            loss = loss + F.cross_entropy(self.side(hidden), labels)
        if self.scale is not None:
            loss = torch.exp(-self.scale) * loss + self.scale
        if self.norm is not None:
            loss = F.cross_entropy(self.norm(logits), labels)
        if self.output == "tuple":
            return loss, logits
        return {"loss": loss, "logits": logits}


class Logits(dict[str, Any]):
    """Outputs with an attribute."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits)
        self.logits = logits


def net(output: str = "dict", **options: Any) -> Any:
    """What makes a ``Net``."""
    return data.built(lambda: Net(output, **options))


class Shifting(nn.Module):
    """A user's language model that shifts labels itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(data.VOCABULARY, 16)
        self.head = nn.Linear(16, data.VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> Any:
        """Return a mean over next tokens."""
        logits = self.head(torch.tanh(self.embed(input_ids)))
        if labels is None:
            return Logits(logits)
        shifted = logits[:, :-1].reshape(-1, data.VOCABULARY)
        return {"loss": F.cross_entropy(shifted, labels[:, 1:].reshape(-1)), "logits": logits}


class TwoViews(OwnLoss):
    """Two forward passes, which should agree."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return cross-entropy and a consistency loss."""
        labels = inputs.pop("labels")
        x = inputs["x"]
        one, two = model(x=x).logits, model(x=1.1 * x).logits
        return F.cross_entropy(one, labels) + F.mse_loss(one, two)


def two_views(model: Any, batch: Any) -> Tensor:
    """The loss of ``TwoViews`` for one row."""
    one, two = model(x=batch["x"]).logits, model(x=1.1 * batch["x"]).logits
    return F.cross_entropy(one, batch["labels"]) + F.mse_loss(one, two)


class GradientPenalty(OwnLoss):
    """The loss's gradient with respect to the inputs is penalised, too."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return cross-entropy and the penalty."""
        labels, x = inputs.pop("labels"), inputs["x"].requires_grad_()
        each = F.cross_entropy(model(x=x).logits, labels, reduction="none")
        (slope,) = torch.autograd.grad(each.sum(), x, create_graph=True)
        total: Tensor = each.mean() + 0.1 * slope.square().sum(1).mean()
        return total


def gradient_penalty(model: Any, batch: Any) -> Tensor:
    """The loss of ``GradientPenalty`` for one row."""
    x = batch["x"].clone().requires_grad_()
    loss = F.cross_entropy(model(x=x).logits, batch["labels"])
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    result: Tensor = loss + 0.1 * slope.square().sum()
    return result


class Adversarial(Trainer):
    """FGM: a second backward pass with the embedding moved along its gradient."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Train on the batch twice."""
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        weight = model.get_input_embeddings().weight
        assert weight.grad is not None
        step = 0.5 * weight.grad / weight.grad.norm()
        weight.data.add_(step)
        super().training_step(model, dict(inputs), *args, **kwargs)
        weight.data.sub_(step)
        return loss


class OwnWeights(OwnLoss):
    """Normalised weights of one's own, by what a column says."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return a weighted mean."""
        labels, mine = inputs.pop("labels"), inputs.pop("mine")
        each = F.cross_entropy(model(**inputs).logits, labels, reduction="none")
        result: Tensor = (mine * each).sum() / mine.sum()
        return result


def own_weights(model: Any, batch: Any) -> Tensor:
    """Rows' parts of the loss of ``OwnWeights``."""
    each = F.cross_entropy(model(x=batch["x"]).logits, batch["labels"], reduction="none")
    result: Tensor = batch["mine"] * each / batch["mine"].sum()
    return result


class Hardest(OwnLoss):
    """Only the hardest half of a batch counts."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the mean of the largest losses."""
        labels = inputs.pop("labels")
        each = F.cross_entropy(model(**inputs).logits, labels, reduction="none")
        return each.topk(len(each) // 2).values.mean()


def hardest(model: Any, batch: Any) -> Tensor:
    """Rows' parts of the loss of ``Hardest``."""
    each = F.cross_entropy(model(x=batch["x"]).logits, batch["labels"], reduction="none")
    kept = torch.zeros_like(each).scatter(0, each.topk(len(each) // 2).indices, 1.0)
    return kept * each / (len(each) // 2)


class Mixup(OwnLoss):
    """Every row is blended with its neighbour, of whatever domain."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the blended loss."""
        labels, x = inputs.pop("labels"), inputs["x"]
        logits = model(x=0.7 * x + 0.3 * x.roll(1, 0)).logits
        one, two = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels.roll(1, 0))
        return 0.7 * one + 0.3 * two


def _modules() -> list[Case]:
    rows = data.vectors()

    def own(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(x=batch["x"]).logits, batch["labels"])

    mine = [row | {"mine": 0.5 + (i % 3)} for i, row in enumerate(rows)]
    causal = data.causal()
    vectors: dict[str, Any] = {"collate": data.stack}
    keep: dict[str, Any] = {"arguments": {"remove_unused_columns": False}}
    return [
        trainer("own module, dict", net("dict"), rows, row_loss=own, expect="right", **vectors),
        trainer("own module, tuple", net("tuple"), rows, row_loss=own, **vectors),
        trainer(
            "own module, second head", net("side"), rows, row_loss=own, expect="row", **vectors
        ),
        trainer(
            "own module, learnt loss scale",
            net("uncertain"),
            rows,
            row_loss=lambda model, batch: torch.exp(-model.scale) * own(model, batch) + model.scale,
            **vectors,
        ),
        trainer(
            "own module, batch norm of logits",
            net("norm"),
            rows,
            row_loss=own,
            expect="row",
            **vectors,
        ),
        trainer(
            "own module that shifts labels",
            data.built(Shifting),
            causal,
            row_loss=next_tokens,
        ),
        trainer("two views", net("dict"), rows, kind=TwoViews, row_loss=two_views, **vectors),
        trainer(
            "gradient penalty",
            net("dict"),
            rows,
            kind=GradientPenalty,
            row_loss=gradient_penalty,
            **vectors,
        ),
        trainer(
            "adversarial training",
            classifier(),
            data.classified(),
            kind=Adversarial,
            row_loss=cross_entropy,
            expect="backward|twice|once",
        ),
        trainer(
            "own weights", net("dict"), mine, kind=OwnWeights, terms=own_weights, **vectors, **keep
        ),
        trainer(
            "hardest half",
            net("dict"),
            rows,
            kind=Hardest,
            terms=hardest,
            **vectors,
        ),
        trainer("mixup", net("dict"), rows, kind=Mixup, row_loss=own, expect="row", **vectors),
        trainer(
            "ViT",
            data.built(
                lambda: ViTForImageClassification(
                    ViTConfig(
                        hidden_size=16,
                        num_hidden_layers=1,
                        num_attention_heads=2,
                        intermediate_size=24,
                        image_size=8,
                        patch_size=4,
                        num_channels=1,
                        hidden_dropout_prob=0.0,
                        id2label=dict.fromkeys(range(data.CLASSES), "a"),
                        attention_probs_dropout_prob=0.0,
                    )
                )
            ),
            [
                {
                    "pixel_values": [
                        [[float(j % 7) * row["x"][i % 6] for j in range(8)] for i in range(8)]
                    ],
                    "labels": row["labels"],
                }
                for row in rows
            ],
            row_loss=cross_entropy,
            expect="right",
            **vectors,
        ),
    ]


def _sorted(rows: Any) -> Any:
    return data.pad(sorted(rows, key=lambda row: -len(row["input_ids"])))


def _dropping(rows: Any) -> Any:
    return data.pad([row for row in rows if len(row["input_ids"]) > 3])


def _doubling(rows: Any) -> Any:
    return data.pad([*rows, *rows])


def _merging(rows: Any) -> Any:
    ids = [i for row in rows for i in row["input_ids"]]
    labels = [i for row in rows for i in (-100, *row["labels"][1:])]
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}


def _collators() -> list[Case]:
    base = classifier()
    causal = data.causal()
    row: dict[str, Any] = {"row_loss": cross_entropy}
    return [
        trainer("streams", base, data.classified(), streamed=True, expect="right", **row),
        trainer("collator that sorts", base, data.classified(), collator=_sorted, **row),
        trainer(
            "collator that drops", base, data.classified(), collator=_dropping, expect="row", **row
        ),
        trainer("collator that doubles", base, data.classified(), collator=_doubling, **row),
        trainer(
            "collator that merges",
            llama(),
            causal,
            collator=_merging,
            row_loss=next_tokens,
            expect="row",
        ),
    ]


CASES = [*_modules(), *_collators()]
