"""Trains a few steps and compares the gradient of each with that of a written-out objective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    TrainerCallback,
)

from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_parity import WEIGHTS, relative_error

Batch = dict[str, Tensor]

ACCUMULATION = 2


def per_row(losses: Tensor, mask: Tensor) -> Tensor:
    """(B,) means over what is supervised."""
    return (losses * mask).sum(1) / mask.sum(1)


def causal(model: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Row losses of a causal LM, mean over next tokens."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels, reduction="none", label_smoothing=smoothing
    )
    return per_row(losses, labels != -100)


def written_out(
    callback: AdaptMixCallback, model: Any, batches: list[Batch], rows: Callable[..., Tensor]
) -> Tensor:
    """Return Σ π w (mean row loss of each domain) over the rows of a step."""
    losses = torch.cat([rows(model, batch) for batch in batches])
    first = torch.cat([batch["input_ids"][:, 0] for batch in batches])
    weights = callback.controller.weights.as_dict(callback.controller.mixture.domains)
    parts = [
        weights[name]["importance"] * weights[name]["loss"] * losses[first == number + 1].mean()
        for number, name in enumerate(hf.SIZES)
    ]
    return torch.stack(parts).sum()


class Check(TrainerCallback):
    """Compares the gradient of each step with that of a function of its micro-batches."""

    def __init__(self, trainer: Any, expected: Callable[[Any, list[Batch]], Tensor]) -> None:
        self.trainer, self.expected = trainer, expected
        self.errors: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare before the optimizer changes the model."""
        model = kwargs["model"]
        trained = [p for p in model.parameters() if p.requires_grad]
        wanted = torch.autograd.grad(
            self.expected(model, self.trainer.batches[-ACCUMULATION:]), trained, allow_unused=True
        )
        pairs = [(p.grad, g) for p, g in zip(trained, wanted, strict=True) if g is not None]
        got = torch.cat([mine.flatten() for mine, _ in pairs if mine is not None])
        self.errors.append(
            relative_error(got, torch.cat([theirs.flatten() for _, theirs in pairs]))
        )


def check(
    folder: Path,
    rows: Callable[..., Tensor],
    *,
    rest: Callable[[Any, Batch], Tensor] | None = None,
    scale: float = 1.0,
    bound: float = 1e-5,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> AdaptMixCallback:
    """Train three steps, and compare each."""
    callback = AdaptMixCallback(
        "source", policy=WEIGHTS, unit="sample", lag=0, update_every=1, **(settings or {})
    )
    options: dict[str, Any] = {
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 10,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": 3,
    }
    trainer = hf.make(folder, callback, **(options | changes))

    def expected(model: Any, batches: list[Batch]) -> Tensor:
        objective = scale * written_out(callback, model, batches, rows)
        parts = [] if rest is None else [rest(model, batch) for batch in batches]
        return objective + sum(parts)

    checked = Check(trainer, expected)
    trainer.add_callback(checked)
    trainer.train()
    assert len(checked.errors) == 3
    assert max(checked.errors) < bound
    return callback


def sequences(features: list[dict[str, Any]]) -> Batch:
    """Rows with one label each."""
    batch = hf.pad(features)
    batch["labels"] = batch["input_ids"].sum(1) % 3
    return batch
