"""Losses of users of the Hugging Face Trainer whose divisor, or whose terms, are not the usual."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForTokenClassification, Trainer, Wav2Vec2Config, Wav2Vec2ForCTC

from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import (
    OwnLoss,
    by_row,
    classifier,
    cross_entropy,
    logits_of,
    trainer,
    with_loss,
)
from tests.conformance.trainer_losses import focal
from tests.conformance.trainer_modules import Logits, Net


def over_itself(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss that is 1, whatever its size."""
    loss = F.cross_entropy(logits, labels)
    return loss / loss.detach()


def focal_of_a_detached_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss as it is often written, with the factor of the batch's mean detached."""
    loss = F.cross_entropy(logits, labels)
    return (1.0 - torch.exp(-loss).detach()) ** 2 * loss


def flooding(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean is kept at a level."""
    return (F.cross_entropy(logits, labels) - 1.3).abs() + 1.3


def flooding_by_row(logits: Tensor, labels: Tensor) -> Tensor:
    """Each row's loss is kept at a level."""
    return ((F.cross_entropy(logits, labels, reduction="none") - 1.3).abs() + 1.3).mean()


class Overflowing(Net):
    """A user's module whose own loss is divided by itself."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """Return a loss, if there are labels, and logits."""
        logits = self.head(torch.tanh(self.body(x)))
        if labels is None:
            return Logits(logits)
        return {"loss": over_itself(logits, labels), "logits": logits}


class Ordinal(Net):
    """Thresholds on one score, which makes fewer logits than there are classes."""

    def __init__(self) -> None:
        super().__init__(outputs=1)
        self.cut = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """Return a loss, if there are labels, and logits."""
        logits = self.head(torch.tanh(self.body(x))) - self.cut
        if labels is None:
            return Logits(logits)
        return {"loss": above(logits, labels), "logits": logits}


def above(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether a class is above each threshold."""
    places = torch.arange(logits.shape[1], device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, (labels[:, None] > places).to(logits))


def ordinal(model: Any, batch: Any) -> Tensor:
    """Of one row."""
    return above(model(x=batch["x"]).logits, batch["labels"])


class NearTheStart(OwnLoss):
    """Divergence from the model that training began with, which is zero in the first step."""

    start: Any = None

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss."""
        if self.start is None:
            self.start = copy.deepcopy(model).requires_grad_(False)
        labels = inputs.pop("labels")
        return near(model(**inputs).logits, self.start(**inputs).logits, labels)


def near(logits: Tensor, start: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, and divergence."""
    away = F.kl_div(logits.log_softmax(1), start.softmax(1), reduction="batchmean")
    return F.cross_entropy(logits, labels) + 0.3 * away


def near_the_start(make: Any) -> Any:
    """Of one row."""
    start = make().requires_grad_(False)
    return lambda model, batch: near(
        logits_of(model, batch), logits_of(start, batch), batch["labels"]
    )


class RowMeans(OwnLoss):
    """Token losses are averaged in each row first."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss."""
        labels = inputs.pop("labels")
        return row_means(model(**inputs).logits, labels)


def row_means(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over rows of the mean over tokens."""
    each = F.cross_entropy(logits.mT, labels, reduction="none")
    return (each.sum(1) / (labels != -100).sum(1)).mean()


class RowSums(OwnLoss):
    """Token losses are summed in each row."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss."""
        labels = inputs.pop("labels")
        return row_sums(model(**inputs).logits, labels)


def row_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over rows of the sum over tokens."""
    return F.cross_entropy(logits.mT, labels, reduction="none").sum(1).mean()


class Direct(Trainer):
    """A training step of one's own that calls the model itself."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Train on the model's loss."""
        loss = model(**self._prepare_inputs(inputs)).loss
        loss.backward()
        return loss.detach()  # type: ignore[no-any-return]


class Same(Trainer):
    """A training step of one's own that does what the Trainer's does."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Train on the trainer's loss."""
        loss: Any = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()  # type: ignore[no-any-return]


def spoken() -> data.Rows:
    """Signals and what is said in them, of other lengths in other domains."""

    def make(rng: Any, name: str) -> dict[str, Any]:
        length = 5 if name == "math" else rng.randint(2, 3)
        labels = [1 + rng.randrange(8) for _ in range(length)]
        return {"input_values": [rng.gauss(0.0, 1.0) for _ in range(200)], "labels": labels}

    return data.rows_by(make)


def pad_spoken(rows: Any) -> dict[str, Tensor]:
    """A batch of signals."""
    longest = max(len(row["labels"]) for row in rows)
    labels = [list(row["labels"]) + [-100] * (longest - len(row["labels"])) for row in rows]
    signals = torch.tensor([row["input_values"] for row in rows], dtype=torch.float64)
    return {"input_values": signals, "labels": torch.tensor(labels)}


def wav2vec() -> Any:
    """What makes a tiny model of speech, trained by connectionist temporal classification."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    layers = {"num_hidden_layers": 1, "vocab_size": 10, "pad_token_id": 0}
    conv = {"conv_dim": [8, 8], "conv_stride": [4, 3], "conv_kernel": [8, 4]}
    more = {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4}
    kinds = ("hidden", "attention", "feat_proj", "activation", "final")
    still = {f"{kind}_dropout": 0.0 for kind in kinds} | {"layerdrop": 0.0, "mask_time_prob": 0.0}
    options: dict[str, Any] = sizes | layers | conv | more | still
    config = Wav2Vec2Config(
        **options,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    return data.built(lambda: Wav2Vec2ForCTC(config))


def _refused() -> list[Case]:
    rows, tagged, base = data.classified(), data.tagged(), classifier()
    tagger = data.bert(BertForTokenClassification)
    once: dict[str, Any] = {"row_loss": cross_entropy, "policies": ("forced",)}
    divided: dict[str, Any] = {"expect": "depends on", **once}
    vectors: dict[str, Any] = {"collate": data.stack}
    token: dict[str, Any] = {"expect": 'unit must be "sample"', "policies": ("forced",)}
    return [
        trainer("over itself", base, rows, kind=with_loss(over_itself), **divided),
        trainer(
            "over itself, own module", data.built(Overflowing), data.vectors(), **divided, **vectors
        ),
        trainer(
            "focal loss of a detached mean",
            base,
            rows,
            kind=with_loss(focal_of_a_detached_mean),
            **divided,
        ),
        trainer("flooding", base, rows, kind=with_loss(flooding), expect="several rows", **once),
        trainer(
            "the model in training_step", base, rows, kind=Direct, expect="compute_loss", **once
        ),
        trainer(
            "means of rows", tagger, tagged, kind=RowMeans, row_loss=by_row(row_means), **token
        ),
        trainer("sums of rows", tagger, tagged, kind=RowSums, row_loss=by_row(row_sums), **token),
    ]


def _right() -> list[Case]:
    rows, tagged, base = data.classified(), data.tagged(), classifier()
    tagger = data.bert(BertForTokenClassification)
    sample: dict[str, Any] = {"callback": {"unit": "sample"}, "expect": "right"}
    return [
        trainer("training_step", base, rows, kind=Same, row_loss=cross_entropy, expect="right"),
        trainer(
            "flooding by row",
            base,
            rows,
            kind=with_loss(flooding_by_row),
            row_loss=by_row(flooding_by_row),
            expect="right",
        ),
        trainer(
            "one row at a time",
            base,
            rows,
            kind=with_loss(focal),
            row_loss=by_row(focal),
            arguments={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
            expect="right",
            policies=("forced",),
        ),
        trainer(
            "near the start",
            base,
            rows,
            kind=NearTheStart,
            row_loss=near_the_start(base),
            expect="right",
        ),
        trainer(
            "ordinal",
            data.built(Ordinal),
            data.vectors(),
            row_loss=ordinal,
            collate=data.stack,
            expect="right",
        ),
        trainer(
            "means of rows, unit sample",
            tagger,
            tagged,
            kind=RowMeans,
            row_loss=by_row(row_means),
            **sample,
        ),
        trainer(
            "sums of rows, unit sample",
            tagger,
            tagged,
            kind=RowSums,
            row_loss=by_row(row_sums),
            **sample,
        ),
        trainer(
            "speech",
            wav2vec(),
            spoken(),
            collate=pad_spoken,
            row_loss=lambda model, batch: model(**batch).loss,
            expect="right",
        ),
    ]


CASES = [*_refused(), *_right()]
