"""What the callback works with: every row of the table in the package's documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    TrainerCallback,
)

from adaptmix import policies
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_parity import relative_error

SAME = policies.Static()


class Twin(TrainerCallback):
    """Compares each step's gradient with that of the trainer's own loss on the same rows."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.trainer: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare before the optimizer changes the model."""
        model = kwargs["model"]
        batches = self.trainer.batches[-args.gradient_accumulation_steps :]
        counts = [batch["labels"].ne(-100).sum() for batch in batches if "labels" in batch]
        if batches[0]["labels"].ndim == 2:
            counts = [batch["labels"][:, 1:].ne(-100).sum() for batch in batches]
        got = hf.gradient(model)
        model.zero_grad()
        total = torch.zeros(())
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            loss = model(**inputs).loss
            total = total + loss * counts[len(counts) - len(counts)] * 0 + loss
        wanted = torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad])
        self.errors.append(
            relative_error(got, torch.cat([gradient.flatten() for gradient in wanted]))
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"label_smoothing_factor": 0.1},
        {"remove_unused_columns": True, "average_tokens_across_devices": False},
    ],
    ids=str,
)
# The name that every supported release has.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_trains(changes: dict[str, Any], tmp_path: Path) -> None:
    callback = AdaptMixCallback("source", policy=policies.VarianceAware(), update_every=1, lag=4)
    trainer = hf.train(tmp_path, callback, **changes)
    assert trainer.state.global_step == 8
    assert callback.controller.statistics.seen.sum() > 0
    weights = callback.controller.weights
    assert abs(weights.sampling - weights.importance).max() > 0.01
