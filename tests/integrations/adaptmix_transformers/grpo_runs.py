"""GRPO in one process or two: whole runs, and runs that stop and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from trl import GRPOConfig, GRPOTrainer

from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import grpo, hf
from tests.integrations.adaptmix_transformers.test_trl import config, preferences, words

STEPS, STOP, ROWS, GENERATIONS = 4, 2, 8, 2
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}


def by_length(completions: list[str], **_: Any) -> list[float]:
    """Reward each word of an answer."""
    return [0.1 * len(answer.split()) for answer in completions]


def run(
    folder: Path | str, accumulation: int, processes: int, *, resume: bool = False
) -> dict[str, Any]:
    """Train, or do the rest of it; return all that must not differ."""
    rows = ROWS // accumulation // processes
    adaptmix = AdaptMixCallback("source", policy=hf.Moving(), update_every=1, lag=1)
    record = hf.Record()
    out = Path(folder) / f"{accumulation}-{processes}"
    trainer = GRPOTrainer(
        model=hf.llama(**SMALL),
        reward_funcs=by_length,
        rollout_func=grpo.told,  # answers that do not depend on who generates them
        args=config(
            GRPOConfig,
            out,
            num_generations=GENERATIONS,
            per_device_train_batch_size=rows * GENERATIONS,
            gradient_accumulation_steps=accumulation,
            max_steps=STEPS,
            save_strategy="steps",
            save_steps=STOP,
        ),
        train_dataset=preferences(),
        processing_class=words(),
        callbacks=[adaptmix, record],
    )
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{STOP}") if resume else None)
    return {
        "parameters": hf.parameters(trainer.accelerator.unwrap_model(trainer.model)),
        "gradients": torch.stack(record.gradients),
        "shares": adaptmix.controller.weights.sampling,
        "seen": adaptmix.controller.statistics.grad_sq,
    }


def stop_and_go_on(folder: Path | str, accumulation: int, processes: int) -> dict[str, Any]:
    """Train, whole and from where it stopped; return the whole run.

    The second run is the rest of the first, to the bit.
    """
    first = run(folder, accumulation, processes)
    rest = run(folder, accumulation, processes, resume=True)
    assert torch.equal(first["parameters"], rest["parameters"])
    assert torch.equal(first["gradients"][STOP:], rest["gradients"])
    np.testing.assert_array_equal(first["shares"], rest["shares"])
    return first
