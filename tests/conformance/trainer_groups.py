"""GRPO as users of TRL write it; answers come from a function, so that they can be told again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from trl import GRPOConfig, GRPOTrainer

from tests.conformance import data
from tests.conformance.trls import llama, trl
from tests.integrations.adaptmix_transformers.grpo import GENERATIONS, answers, told

ROWS = [{"prompt": " ".join(f"w{i}" for i in text["input_ids"][:4])} for text in data.texts()]
_SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 8 * GENERATIONS,
    "num_generations": GENERATIONS,
    "max_completion_length": 6,
    "loss_type": "grpo",
}


def distinct(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Reward each answer for its different words."""
    return [float(len(set(ids))) for ids in completion_ids]


def alone(rows: Any) -> str:
    """The prompt of one row."""
    (row,) = rows
    prompt: str = row["prompt"]
    return prompt


def group(model: Any, prompt: str) -> Tensor:
    """The stated loss of a prompt: −Σ advantage · log-probability, a mean over each answer."""
    start = [int(word[1:]) for word in prompt.split()]
    completions = answers(prompt)
    rewards = torch.tensor(distinct(completions))
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    losses = []
    for ids, advantage in zip(completions, advantages, strict=True):
        logits = model(input_ids=torch.tensor([[*start, *ids]])).logits[0, len(start) - 1 : -1]
        losses.append(advantage * F.cross_entropy(logits, torch.tensor(ids)))
    return torch.stack(losses).mean()


def _case(name: str, **changes: Any) -> Any:
    return trl(
        name,
        GRPOTrainer,
        GRPOConfig,
        llama(),
        ROWS,
        alone,
        arguments=_SETTINGS | changes,
        options=lambda: {"reward_funcs": distinct, "rollout_func": told},
        row_loss=group,
        expect="right",
    )


CASES = [
    _case("GRPO"),
    _case(
        "GRPO, accumulation",
        gradient_accumulation_steps=4,
        per_device_train_batch_size=2 * GENERATIONS,
    ),
]
