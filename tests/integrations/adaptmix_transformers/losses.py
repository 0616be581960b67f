"""Runs of a small classifier whose every gradient is compared with one that is written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback

from adaptmix import Draw, policies
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf

Batch = dict[str, Tensor]
POLICY = policies.Static(sampling={"a": 0.3, "b": 0.7}, loss={"a": 1.5, "b": 0.7})


def rare(seed: int, *, classes: int = 2, rows: int = 200) -> Dataset:
    """Rows of two domains, 97 of 100 of the first class."""
    generator = torch.Generator().manual_seed(seed)
    listed = []
    for i in range(rows):
        common = float(torch.rand((), generator=generator)) < 0.97
        label = 0 if common else 1 + i % (classes - 1)
        ids = torch.randint(3, hf.VOCABULARY, (6,), generator=generator).tolist()
        listed.append({"input_ids": ids, "labels": label, "source": "ab"[i % 3 == 0]})
    return Dataset.from_list(listed)


def stack(features: list[dict[str, Any]]) -> Batch:
    """Rows of one length."""
    names = [name for name in features[0] if name != "source"]
    return {name: torch.tensor([feature[name] for feature in features]) for name in names}


def bert(seed: int = 0, **changes: Any) -> Any:
    """A classifier without dropout, in float64."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    quiet: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options = {"intermediate_size": 16, "vocab_size": hf.VOCABULARY, **shape, **quiet, **changes}
    return BertForSequenceClassification(BertConfig(**options)).double()


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one micro-batch was.

    Attributes:
        inputs: of ``compute_loss``.
        draw: how it was drawn.
        multipliers: (B,) π w / share.
    """

    inputs: Batch
    draw: Draw
    multipliers: Tensor


Expected = Callable[[Any, MicroBatch], Tensor]
"""(model, micro-batch) -> the scalar whose gradient the optimizer is to see."""


class Compare(TrainerCallback):
    """Compares the gradient of each step with that of a function of its micro-batches."""

    def __init__(self, trainer: Any, callback: AdaptMixCallback, expected: Expected) -> None:
        self.trainer, self.callback, self.expected = trainer, callback, expected
        self.batches: list[MicroBatch] = []
        self.errors: list[float] = []
        own = trainer.training_step

        def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            sampler: Any = callback._sampler
            draw = sampler._draws[inputs["adaptmix_number"]]
            weights = callback.controller.weights
            each = torch.from_numpy(weights.importance * weights.loss / draw.domain_shares)
            kept = {name: value for name, value in inputs.items() if name != "adaptmix_number"}
            self.batches.append(MicroBatch(kept, draw, each[draw.domains]))
            return own(model, inputs, *args, **kwargs)

        trainer.training_step = training_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare before the optimizer changes the model."""
        model, batches = kwargs["model"], self.batches
        self.batches = []
        trained = [p for p in model.parameters() if p.requires_grad]
        got = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]
        total = torch.stack([self.expected(model, batch) for batch in batches]).sum()
        wanted = torch.autograd.grad(total, trained, allow_unused=True)
        right = [torch.zeros_like(p) if w is None else w for p, w in zip(got, wanted, strict=True)]
        flat, exact = (torch.cat([part.flatten() for part in parts]) for parts in (got, right))
        self.errors.append(float((flat - exact).norm() / exact.norm()))


def compare(
    folder: Path,
    expected: Expected,
    *,
    model: Any = None,
    data: Any = None,
    collator: Any = stack,
    kind: type[Trainer] = Trainer,
    settings: dict[str, Any] | None = None,
    trainer_options: dict[str, Any] | None = None,
    resume: str | None = None,
    **changes: Any,
) -> tuple[list[float], AdaptMixCallback]:
    """Train, and return each step's relative error and the callback."""
    options = {"policy": POLICY, "unit": "sample", "lag": 0, "update_every": 3, **(settings or {})}
    callback = AdaptMixCallback("source", **options)
    trainer = kind(
        model=bert() if model is None else model,
        args=hf.arguments(folder, **({"max_steps": 12, "max_grad_norm": 0.0} | changes)),
        train_dataset=rare(0) if data is None else data,
        data_collator=collator,
        callbacks=[callback],
        **(trainer_options or {}),
    )
    check = Compare(trainer, callback, expected)
    trainer.add_callback(check)
    trainer.train(resume_from_checkpoint=resume)
    return check.errors, callback


class Net(nn.Module):
    """A model of one's own, with whatever loss is put into it."""

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor] | None = None, *, outputs: int = 3
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Embedding(hf.VOCABULARY, 16)
        self.mix = nn.Linear(16, 16)
        self.out = nn.Linear(16, outputs)
        self.loss = loss
        self.double()

    def hidden(self, input_ids: Tensor) -> Tensor:
        """(B, 16)."""
        return torch.tanh(self.mix(self.body(input_ids).mean(1)))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return logits, and the loss if there is one inside."""
        logits = self.out(self.hidden(input_ids))
        if self.loss is None or labels is None:
            return {"logits": logits}
        return {"loss": self.loss(logits, labels), "logits": logits}
