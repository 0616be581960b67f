"""Tiny models and Trainer runs that the integration's tests drive."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from adaptmix import Domains, DomainStats, Weights
from adaptmix_transformers import AdaptMixCallback

SIZES = {"code": 40, "news": 24, "math": 16}
LENGTHS = {"code": (3, 6), "news": (5, 10), "math": (8, 12)}
VOCABULARY, PAD = 29, 0
# Group rows by length; transformers 5 has the newer name.
GROUPED: dict[str, Any] = (
    {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
    else {"group_by_length": True}
)


@dataclass(frozen=True)
class Moving:
    """Sampling p ∝ π (E‖g‖²)^power as soon as it is known, however few rows tell it.

    ``VarianceAware`` waits for evidence, of which runs of a few steps have too little.
    """

    power: float = 0.5
    requires: ClassVar[frozenset[str]] = frozenset({"grad_sq"})

    def init(self, domains: Domains, run: Any) -> dict[str, Any]:
        """Return the state: only the importance."""
        return {"importance": domains.importance}

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the weights; a domain that is not known has the others' mean."""
        importance, norms = state["importance"], stats.grad_sq**self.power
        known = np.isfinite(norms)
        norms = np.where(known, norms, norms[known].mean() if known.any() else 1.0)
        sampling = importance * norms / (importance @ norms)
        return Weights(sampling, np.ones_like(importance), importance), state


def rows(
    sizes: dict[str, int] = SIZES, *, ragged: bool = True, plain: bool = False, seed: int = 0
) -> Dataset:
    """Rows whose first token tells their domain; names are a string column.

    With ``plain`` the first domain repeats one word.
    """
    rng = random.Random(seed)
    listed = []
    for number, (name, size) in enumerate(sizes.items()):
        for _ in range(size):
            length = rng.randint(*LENGTHS[name]) if ragged else 8
            # Texts of fewer words are learnt sooner, so that gradients come to differ.
            variety = 1 if plain and not number else 3 ** (number + 1)
            words = [4 + rng.randrange(variety) % (VOCABULARY - 4) for _ in range(length)]
            ids = [1 + number, *words]
            listed.append({"input_ids": ids, "labels": ids, "source": name})
    rng.shuffle(listed)
    return Dataset.from_list(listed)


def pad(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad on the right; what is padded is not supervised."""
    longest = max(len(feature["input_ids"]) for feature in features)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for feature in features:
        ids, missing = feature["input_ids"], longest - len(feature["input_ids"])
        batch["input_ids"].append([*ids, *[PAD] * missing])
        batch["attention_mask"].append([1] * len(ids) + [0] * missing)
        batch["labels"].append([*feature["labels"], *[-100] * missing])
    return {name: torch.tensor(values) for name, values in batch.items()}


def llama(seed: int = 0, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A causal LM of two layers, from its configuration."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    config = LlamaConfig(vocab_size=VOCABULARY, pad_token_id=PAD, **(shape | heads | changes))
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype)


def arguments(folder: Path | str, **changes: Any) -> TrainingArguments:
    """Arguments for CPU, quiet."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 8,
        "learning_rate": 5e-3,
        "save_strategy": "no",
        "logging_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**(defaults | changes))


class Record(TrainerCallback):
    """Keeps the gradient that the optimizer sees in each step."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Copy the gradients."""
        self.gradients.append(gradient(kwargs["model"]))


class RecordingTrainer(Trainer):
    """A Trainer that keeps the micro-batches it trains on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.batches: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Keep the inputs, then do as the Trainer does."""
        self.batches.append(dict(inputs))
        return super().training_step(model, inputs, *args, **kwargs)


def make(
    folder: Path | str,
    callback: AdaptMixCallback | None,
    *,
    model: Any = None,
    data: Any = None,
    collator: Any = pad,
    kind: type[Trainer] = RecordingTrainer,
    trainer_options: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """Return a trainer."""
    callbacks: list[TrainerCallback] = [Record()]
    return kind(
        model=llama() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=rows() if data is None else data,
        data_collator=collator,
        callbacks=callbacks + ([] if callback is None else [callback]),
        **(trainer_options or {}),
    )


def train(
    folder: Path | str,
    callback: AdaptMixCallback | None,
    *,
    resume: str | Path | None = None,
    **options: Any,
) -> Any:
    """Train, and return the trainer; options are those of ``make``."""
    trainer = make(folder, callback, **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def gradients(trainer: Trainer) -> list[Tensor]:
    """What the optimizer saw, step by step."""
    return next(
        callback.gradients
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, Record)
    )


def gradient(model: Any) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def parameters(model: Any) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained_rows(trainer: Any) -> list[Any]:
    """The token ids of every micro-batch trained on."""
    return [batch["input_ids"].tolist() for batch in trainer.batches]
