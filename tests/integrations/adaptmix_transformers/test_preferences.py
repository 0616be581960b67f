"""Preferences under TRL: a pair is a sample, for weights and for statistics.

Also tests ``adaptmix_transformers/_pairs.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

pytest.importorskip("trl")  # it does not support the oldest transformers
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from adaptmix import noise, policies
from adaptmix.errors import MissingStatisticError, ObjectiveError
from adaptmix.trainers import find_loss_inputs
from adaptmix_transformers import AdaptMixCallback
from adaptmix_transformers._pairs import pair_losses
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_trl import (
    Check,
    config,
    preferences,
    tokenizer,
)

__all__ = ["tokenizer"]
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:You are importing from"
)
WEIGHTS = policies.Static(sampling={"a": 0.25, "b": 0.75}, loss={"a": 1.5, "b": 0.5})
# All that are a mean over pairs.
DPO_LOSSES = [
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "discopop", "sigmoid_norm"),
]


def one_by_one(batch: dict[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    """The batches of one pair each, (1, …) or (2, …), that a batch is made of."""
    for number in range(rows):
        yield {k: v[number::rows] for k, v in batch.items() if isinstance(v, Tensor)}


def checked(trainer: Any, callback: AdaptMixCallback, *, blocks: int = 2) -> float:
    """Train; return the largest error against Σ π w (mean of the trainer's loss of single rows)."""
    own = trainer.compute_loss

    def expected(model: Any, batches: list[dict[str, Any]]) -> Tensor:
        parts: dict[int, list[Tensor]] = {}
        for batch in batches:
            first = "input_ids" if "input_ids" in batch else "chosen_input_ids"
            for alone in one_by_one(batch, len(batch[first]) // blocks):
                parts.setdefault(int(alone[first][0, 0]) - 3, []).append(own(model, alone))
        weights = callback.controller.weights
        factors = weights.importance * weights.loss
        means = [float(factors[i]) * torch.stack(losses).mean() for i, losses in parts.items()]
        return torch.stack(means).sum()

    check = Check(expected)
    check.watch(trainer).train()
    assert check.errors
    return max(check.errors)


def dpo(
    folder: Path, words: Any, callback: AdaptMixCallback, eval_dataset: Any = None, **changes: Any
) -> Any:
    """A DPOTrainer of a few steps."""
    return DPOTrainer(
        model=hf.llama(),
        ref_model=hf.llama(1).eval(),
        args=config(DPOConfig, folder, **{"max_steps": 3, "beta": 0.5} | changes),
        train_dataset=preferences(),
        eval_dataset=eval_dataset,
        processing_class=words,
        callbacks=[callback],
    )


class InTurn(TrainerCallback):
    """Trains another loss in each step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the step's."""
        self.trainer.loss_types = [DPO_LOSSES[state.global_step]]


def test_losses_of_pairs_are_the_objective(tmp_path: Path, tokenizer: Any) -> None:
    callback = AdaptMixCallback("source", policy=WEIGHTS, lag=0, update_every=1)
    smoothing = {"loss_type": ["robust"], "label_smoothing": 0.1}
    trainer = dpo(tmp_path, tokenizer, callback, max_steps=len(DPO_LOSSES), **smoothing)
    trainer.add_callback(InTurn(trainer))
    assert checked(trainer, callback) < 2e-5


def test_several_losses_weighted_by_the_model_are_the_objective(
    tmp_path: Path, tokenizer: Any
) -> None:
    callback = AdaptMixCallback("source", policy=WEIGHTS, lag=0, update_every=1)
    several = {"loss_type": ["sigmoid", "ipo"], "loss_weights": [0.7, 0.3], "use_weighting": True}
    assert checked(dpo(tmp_path, tokenizer, callback, **several), callback) < 2e-5


def test_answers_without_a_baseline_are_the_objective(tmp_path: Path, tokenizer: Any) -> None:
    data = preferences()
    rows = data.add_column("completion", data["chosen"]).add_column(
        "label", [bool(i % 3) for i in range(len(data))]
    )

    def trainer(loss: str, order: str, callback: AdaptMixCallback) -> Any:
        return KTOTrainer(
            model=hf.llama(),
            ref_model=hf.llama(1).eval(),
            args=config(
                KTOConfig, tmp_path, loss_type=loss, max_steps=3, train_sampling_strategy=order
            ),
            train_dataset=rows.remove_columns(["chosen", "rejected"]),
            processing_class=tokenizer,
            callbacks=[callback],
        )

    callback = AdaptMixCallback("source", policy=WEIGHTS, lag=0, update_every=1)
    with pytest.raises(ObjectiveError, match='train_sampling_strategy="random"'):
        trainer("apo_zero_unpaired", "sequential", AdaptMixCallback("source")).train()
    assert checked(trainer("apo_zero_unpaired", "random", callback), callback, blocks=1) < 2e-5
    with pytest.raises(ObjectiveError, match="compares each answer with the mean of its batch"):
        trainer("kto", "sequential", AdaptMixCallback("source")).train()


@pytest.mark.parametrize("name", ["CPO", "ORPO"])
def test_pairs_beside_a_likelihood_are_the_objective(
    name: str, tmp_path: Path, tokenizer: Any
) -> None:
    """Preferred answers are of one length: their likelihood is a mean over the batch's tokens."""
    module = importlib.import_module(f"trl.experimental.{name.lower()}")
    callback = AdaptMixCallback("source", policy=WEIGHTS, lag=0, update_every=1)
    alike = {"max_length": 32, "max_steps": 3, "remove_unused_columns": False}
    trainer = getattr(module, f"{name}Trainer")(
        model=hf.llama(),
        args=config(getattr(module, f"{name}Config"), tmp_path, **alike),
        train_dataset=preferences().select(range(0, 60, 3)),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    assert checked(trainer, callback, blocks=1) < 2e-5


def test_losses_and_noise_of_pairs_are_those_of_two_classes() -> None:
    """The margin and 0 are the logits of the preferred answer and of the other one."""
    scores = torch.randn(12, requires_grad=True)
    margins = 2.0 * (scores[:6] - scores[6:])
    loss = -F.logsigmoid(margins).mean()
    rows = pair_losses(loss, find_loss_inputs(loss, [margins]), 6)
    assert rows is not None and rows.noise is not None
    torch.testing.assert_close(rows.values, -F.logsigmoid(margins))
    classes = torch.stack([margins, torch.zeros(6)], 1).detach()
    both = noise.softmax(classes, torch.zeros(6, dtype=torch.int64))
    for got, wanted in zip(rows.noise(None), both, strict=True):
        torch.testing.assert_close(got, 0.5 * wanted)
    for other in (loss + 0.1 * scores.square().mean(), 2.0 * loss, -F.logsigmoid(margins).sum()):
        assert pair_losses(other, find_loss_inputs(other, [margins]), 6) is None


def test_every_policy_goes_by_pairs(tmp_path: Path, tokenizer: Any) -> None:
    callback = AdaptMixCallback("source", policy="joint", lag=0, update_every=1)
    trainer = dpo(tmp_path, tokenizer, callback, eval_dataset=preferences().select(range(13)))
    trainer.train()
    metrics = trainer.evaluate()
    losses = [metrics["eval_loss_a"], metrics["eval_loss_b"]]
    assert np.average(losses, weights=[7, 6]) == pytest.approx(metrics["eval_loss"], rel=1e-4)
    assert {"noise", "loss_mean", "grad_var"} <= callback.controller.statistics.supplied()
    refused = AdaptMixCallback("source", policy="joint", lag=0, update_every=1)
    with pytest.raises(MissingStatisticError, match=r"noise of rows.*Those of pairs are known"):
        dpo(tmp_path, tokenizer, refused, loss_type=["ipo"]).train()
