"""GRPO on prompts of three tasks: a trainer, and its objective written out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from adaptmix import DomainStats, Weights
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_trl import config, words

TASKS = ("easy", "never", "mixed")
GENERATIONS = 4


def prompts(rows: int = 60) -> Dataset:
    """Prompts whose first word, w3 to w5, tells their task."""
    listed = []
    for i in range(rows):
        text = f"w{3 + i % 3} w{6 + 7 * i % 22} w{6 + 5 * i % 22}"
        listed.append({"prompt": text, "task": TASKS[i % 3]})
    return Dataset.from_list(listed)


def reward(completions: list[str], task: list[str], **kwargs: Any) -> list[float]:
    """Reward long answers in "easy", answers with one of some words in "mixed", and no other."""
    assert not any(name.startswith("adaptmix") for name in kwargs)
    wanted = {f"w{i}" for i in range(6, 14)}
    return [
        float(len(answer.split()) > 2)
        if name == "easy"
        else float(name == "mixed" and bool(wanted & set(answer.split())))
        for answer, name in zip(completions, task, strict=True)
    ]


def answers(prompt: str) -> list[list[int]]:
    """Token ids of the answers that a prompt has here."""
    draw = random.Random(prompt)
    lengths = [draw.randint(1, 6) for _ in range(GENERATIONS)]
    return [[6 + draw.randrange(20) for _ in range(length)] for length in lengths]


def told(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Answer prompts without a model: each time that one comes, with the next of its answers."""
    times: Counter[str] = Counter()
    completions = []
    for prompt in prompts:
        completions.append(answers(prompt)[times[prompt] % GENERATIONS])
        times[prompt] += 1
    ids = trainer.processing_class(text=prompts)["input_ids"]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


class Moving(hf.Moving):
    """The same with a share for tasks whose gradient is zero."""

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the weights."""
        least = 0.01 * np.nanmax(stats.grad_sq) if np.isfinite(stats.grad_sq).any() else 1.0
        return super().update(stats.replaced(grad_sq=np.maximum(stats.grad_sq, least)), state)


class Double(GRPOTrainer):  # type: ignore[misc]
    """Computes log-probabilities in float64, which TRL's fused head does not have."""

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **_: Any
    ) -> Any:
        outputs = model(input_ids=input_ids, attention_mask=attention_mask)
        log_probs = outputs.logits[:, :-1].log_softmax(-1)
        each = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
        entropy = -(log_probs.detach().exp() * log_probs.detach()).sum(-1)
        return each[:, -logits_to_keep:], entropy[:, -logits_to_keep:], None


def make(
    folder: Path | str,
    *callbacks: Any,
    kind: Any = GRPOTrainer,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """A trainer of a few steps, each of which is certain to have prompts of every task."""
    settings = {
        "per_device_train_batch_size": 8 * GENERATIONS,
        "num_generations": GENERATIONS,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 6,
        "learning_rate": 2e-2,
    }
    model = hf.llama(max_position_embeddings=64)
    if changes.get("beta"):
        model.save_pretrained(Path(folder) / "start")  # TRL loads the reference model anew
        model = type(model).from_pretrained(Path(folder) / "start")
    return kind(
        model=model.double() if kind is Double else model,
        reward_funcs=reward,
        args=config(GRPOConfig, Path(folder), **(settings | changes)),
        train_dataset=prompts(),
        processing_class=words(),
        callbacks=list(callbacks),
        **(options or {}),
    )


class Objective:
    """Compares the gradient of each step with that of the objective, written out.

    Args:
        trainer: of the run.
        callback: of AdaptMix.
    """

    def __init__(self, trainer: Any, callback: Any) -> None:
        self.trainer, self.callback = trainer, callback
        self.errors: list[float] = []
        self.clipped = 0
        self.squares: list[dict[str, float]] = []  # of groups' gradients, by task
        self.batches: list[dict[str, Any]] = []
        own = trainer._compute_loss

        def compute_loss(model: Any, inputs: Any) -> Tensor:
            self.batches.append(dict(inputs))
            result: Tensor = own(model, inputs)
            return result

        trainer._compute_loss = compute_loss
        trainer.add_callback(Before(self.compare))

    def compare(self, model: Any) -> None:
        """Compare before the optimizer changes the model."""
        batches, self.batches = self.batches, []
        parameters = [p for p in model.parameters() if p.requires_grad]
        wanted = torch.autograd.grad(self.loss(model, batches), parameters)
        expected = torch.cat([g.flatten() for g in wanted])
        got = hf.gradient(model)
        self.errors.append(float((got - expected).norm() / expected.norm().clamp(min=1e-12)))

    def loss(self, model: Any, batches: list[dict[str, Any]]) -> Tensor:
        """Return Σ π w (mean over a task's completions) of a step, as the loss type has it."""
        args = self.trainer.args
        parts = torch.stack([self._rows(model, batch) for batch in batches])
        tokens = torch.stack([batch["completion_mask"].sum(1) for batch in batches]).to(parts)
        multipliers = self._multipliers(batches).to(parts)
        if args.loss_type in ("grpo", "sapo"):
            parts = parts / tokens
        if args.loss_type == "dr_grpo":
            parts = parts / args.max_completion_length
        if args.loss_type in ("dapo", "cispo", "vespo"):
            return (multipliers * parts).sum() / self._weighted_tokens().to(parts)
        return (multipliers * parts).mean()

    def _multipliers(self, batches: list[dict[str, Any]]) -> Tensor:
        """Return π w over the share of its task of each completion of a step."""
        task = torch.stack([batch["prompt_ids"][:, 0] - 3 for batch in batches])
        weights = self.callback.controller.weights
        names = self.callback.controller.mixture.domains
        factors = dict(zip(names, weights.importance * weights.loss, strict=True))
        shares = torch.bincount(task.flatten(), minlength=3) / task.numel()
        return (torch.tensor([factors[name] for name in TASKS]) / shares)[task]

    def _weighted_tokens(self) -> Tensor:
        """Return the weighted tokens of the generation in use, as many as are of one step."""
        together, micro = (
            self.trainer._buffered_inputs,
            self.trainer.args.gradient_accumulation_steps,
        )
        steps = [together[i : i + micro] for i in range(0, len(together), micro)]
        tokens = [
            self._multipliers(step) * torch.stack([b["completion_mask"].sum(1) for b in step])
            for step in steps
        ]
        return torch.stack(tokens).sum() / len(steps)

    def _rows(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """Return each completion's summed loss."""
        args = self.trainer.args
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        keep = batch["completion_ids"].shape[1]
        kept = batch["completion_mask"]
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1]
        log_probs = -F.cross_entropy(logits.mT, batch["completion_ids"], reduction="none")
        old = batch.get("old_per_token_logps")
        ratio = (log_probs - (log_probs.detach() if old is None else old)).exp()
        if args.importance_sampling_level == "sequence":
            mean = (ratio.log() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
            ratio = mean.exp()
        advantages = batch["advantages"][:, None]
        clipped = ratio.clamp(1 - args.epsilon, 1 + args.epsilon)
        self.clipped += int((ratio != clipped).sum())
        each = self._each(ratio, clipped, advantages, log_probs)
        if args.beta:
            away = batch["ref_per_token_logps"] - log_probs
            corrected = ratio if args.use_bias_correction_kl else 1.0
            each = each + args.beta * (away.exp() - away - 1) * corrected
        totals: Tensor = (each * kept).sum(1)
        return totals

    def _each(
        self, ratio: Tensor, clipped: Tensor, advantages: Tensor, log_probs: Tensor
    ) -> Tensor:
        args = self.trainer.args
        if args.loss_type == "cispo":
            loss: Tensor = -ratio.detach().clamp(max=args.epsilon) * advantages * log_probs
            return loss
        if args.loss_type == "sapo":
            heat = torch.where(advantages > 0, args.sapo_temperature_pos, args.sapo_temperature_neg)
            ratio = clipped = torch.sigmoid(heat * (ratio - 1)) * 4 / heat
        smaller: Tensor = torch.minimum(ratio * advantages, clipped * advantages)
        return -smaller


class Before(TrainerCallback):
    """Calls a function with the model before each optimizer step."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.function = function

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call it."""
        self.function(kwargs["model"])
