"""TRL's trainers in one process or two: whole runs, and runs that stop and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from adaptmix_transformers import AdaptMixCallback, AdaptMixMixin
from tests.integrations.adaptmix_transformers import grpo, hf
from tests.integrations.adaptmix_transformers.test_trl import config, preferences, words

STEPS, STOP, ROWS = 4, 2, 8
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}


class PackedTrainer(AdaptMixMixin, SFTTrainer):  # type: ignore[misc]
    """Packs each domain by itself."""

    def __init__(self, *args: Any, callbacks: Any, **kwargs: Any) -> None:
        super().__init__(*args, adaptmix=callbacks[0], callbacks=callbacks[1:], **kwargs)


def adapters() -> Any:
    """A Llama with LoRA."""
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(hf.llama(**SMALL), lora)


def scorer() -> Any:
    """A Llama that gives one score."""
    torch.manual_seed(0)
    kind: Any = LlamaForSequenceClassification
    options: dict[str, Any] = {"num_attention_heads": 2, "pad_token_id": 0, "num_labels": 1}
    return kind(LlamaConfig(vocab_size=hf.VOCABULARY, **(SMALL | options)))


def by_length(completions: list[str], **_: Any) -> list[float]:
    """Reward each word of an answer."""
    return [0.1 * len(answer.split()) for answer in completions]


Trained = tuple[Any, Any, Callable[[], Any], dict[str, Any]]
"""A trainer, its configuration, what makes its model, and its settings."""

SETUPS: dict[str, Trained] = {
    "plain": (SFTTrainer, SFTConfig, lambda: hf.llama(**SMALL), {}),
    "LoRA": (SFTTrainer, SFTConfig, adapters, {}),
    "padding-free": (
        SFTTrainer,
        SFTConfig,
        lambda: hf.llama(**SMALL),
        {"padding_free": True, "max_length": None},
    ),
    "packed": (
        PackedTrainer,
        SFTConfig,
        lambda: hf.llama(**SMALL),
        {"packing": True, "max_length": 16},
    ),
    "DPO": (DPOTrainer, DPOConfig, lambda: hf.llama(**SMALL), {"beta": 0.5}),
    "reward": (RewardTrainer, RewardConfig, scorer, {}),
    "GRPO": (GRPOTrainer, GRPOConfig, lambda: hf.llama(**SMALL), {"num_generations": 2}),
}
# Loss weights too, where the loss tells noise.
POLICIES: dict[str, Any] = {"padding-free": "joint", "DPO": "joint"}


def run(
    folder: Path | str, name: str, accumulation: int, processes: int, *, resume: bool = False
) -> dict[str, Any]:
    """Train one of ``SETUPS``, or the rest of it; return all that must not differ."""
    kind, arguments, model, changes = SETUPS[name]
    rows = ROWS // accumulation // processes
    adaptmix = AdaptMixCallback(
        "source", policy=POLICIES.get(name, hf.Moving()), update_every=1, lag=1
    )
    record = hf.Record()
    out = Path(folder) / f"{name}-{accumulation}-{processes}"
    options: dict[str, Any] = {}
    if kind is DPOTrainer:
        options["ref_model"] = hf.llama(1, **SMALL).eval()
    if kind is GRPOTrainer:  # answers that do not depend on who generates them
        options |= {"reward_funcs": by_length, "rollout_func": grpo.told}
    trainer = kind(
        model=model(),
        args=config(
            arguments,
            out,
            per_device_train_batch_size=rows * changes.get("num_generations", 1),
            gradient_accumulation_steps=accumulation,
            max_steps=STEPS,
            save_strategy="steps",
            save_steps=STOP,
            **changes,
        ),
        train_dataset=hf.rows() if kind in (SFTTrainer, PackedTrainer) else preferences(),
        processing_class=words(),
        callbacks=[adaptmix, record],
        **options,
    )
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{STOP}") if resume else None)
    return {
        "parameters": hf.parameters(trainer.accelerator.unwrap_model(trainer.model)),
        "gradients": torch.stack(record.gradients),
        "shares": adaptmix.controller.weights.sampling,
        "seen": adaptmix.controller.statistics.grad_sq,
    }


def stop_and_go_on(folder: Path | str, accumulation: int, processes: int) -> dict[str, Any]:
    """Train all set-ups, whole and from where they stopped; return the whole runs.

    The second run is the rest of the first, to the bit.
    """
    whole = {}
    for name in SETUPS:
        first = run(folder, name, accumulation, processes)
        rest = run(folder, name, accumulation, processes, resume=True)
        assert torch.equal(first["parameters"], rest["parameters"]), name
        assert torch.equal(first["gradients"][STOP:], rest["gradients"]), name
        np.testing.assert_array_equal(first["shares"], rest["shares"])
        whole[name] = first
    return whole
