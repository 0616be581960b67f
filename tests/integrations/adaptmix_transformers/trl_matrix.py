"""TRL's trainers, in one process or two, judged step by step; runs that stop and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from adaptmix import Draw
from adaptmix_transformers import AdaptMixCallback, AdaptMixMixin
from tests import runs
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_trl import config, preferences, words

STEPS, STOP, ROWS, BETA = 4, 2, 8, 0.5
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
POLICIES = ("variance_aware", "joint")

RowLoss = Callable[[Any, dict[str, Any]], Tensor]
"""(model, a row of the trainer's dataset) -> () sum of its losses."""


class PackedTrainer(AdaptMixMixin, SFTTrainer):  # type: ignore[misc]
    """Packs each domain by itself."""

    def __init__(self, *args: Any, callbacks: Any, **kwargs: Any) -> None:
        super().__init__(*args, adaptmix=callbacks[0], callbacks=callbacks[1:], **kwargs)


def llama() -> Any:
    """The model of most set-ups."""
    return hf.llama(**SMALL)


def adapters() -> Any:
    """A Llama with LoRA."""
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(llama(), lora)


def scorer() -> Any:
    """A Llama that gives one score."""
    torch.manual_seed(0)
    kind: Any = LlamaForSequenceClassification
    options: dict[str, Any] = {"num_attention_heads": 2, "pad_token_id": 0, "num_labels": 1}
    return kind(LlamaConfig(vocab_size=hf.VOCABULARY, **(SMALL | options)))


def parts(row: dict[str, Any], name: str) -> list[Tensor]:
    """A column of a row; of each row by itself where it is a pack."""
    values = torch.tensor(row[name])
    return list(values.split(row.get("seq_lengths") or [len(values)]))


def supervised(row: dict[str, Any]) -> int:
    """How many tokens of a row are predicted."""
    return sum(int((labels[1:] != -100).sum()) for labels in parts(row, "labels"))


def tokens(model: Any, row: dict[str, Any]) -> Tensor:
    """Cross-entropy of each next token."""
    total = torch.zeros((), device=model.device)
    for ids, labels in zip(parts(row, "input_ids"), parts(row, "labels"), strict=True):
        logits = model(input_ids=ids[None].to(model.device)).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:].to(model.device), reduction="sum")
    return total


def preference(model: Any, row: dict[str, Any]) -> Tensor:
    """DPO's loss of a pair."""
    reference = hf.llama(1, **SMALL).eval()

    def likelihood(of: Any, answer: str) -> Tensor:
        prompt = row["prompt_ids"]
        ids = torch.tensor(prompt + row[answer])
        each = of(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        total: Tensor = each.gather(1, ids[1:, None])[len(prompt) - 1 :].sum()
        return total

    with torch.no_grad():
        start = likelihood(reference, "chosen_ids") - likelihood(reference, "rejected_ids")
    margin = likelihood(model, "chosen_ids") - likelihood(model, "rejected_ids")
    return -F.logsigmoid(BETA * (margin - start))


def scores(model: Any, row: dict[str, Any]) -> Tensor:
    """The loss of a reward model, with the margin that the row asks for."""
    chosen, rejected = (
        model(input_ids=torch.tensor([row[name]])).logits[0, 0]
        for name in ("chosen_ids", "rejected_ids")
    )
    return -F.logsigmoid(chosen - rejected - row["margin"])


def with_margins() -> Any:
    """Preferences, some of which are clearer than others."""
    data = preferences()
    return data.add_column("margin", [0.1 * (number % 4) for number in range(len(data))])


@dataclass(frozen=True)
class Setup:
    """How a user trains, and what the loss of one row is.

    Args:
        kind: trainer.
        config: its arguments.
        model: makes the model.
        data: makes the dataset.
        row_loss: of a row.
        changes: of the arguments.
        per_token: whether every token counts the same.
    """

    kind: Any
    config: Any
    model: Callable[[], Any]
    data: Callable[[], Any]
    row_loss: RowLoss
    changes: dict[str, Any] = field(default_factory=dict)
    per_token: bool = True


PADDING_FREE: dict[str, Any] = {"padding_free": True, "max_length": None}
PACKED: dict[str, Any] = {"packing": True, "max_length": 16}
FLATTENING: Any = DataCollatorWithFlattening
FLATTENED = partial(Trainer, data_collator=FLATTENING())
SETUPS = {
    "plain": Setup(SFTTrainer, SFTConfig, llama, hf.rows, tokens),
    "LoRA": Setup(SFTTrainer, SFTConfig, adapters, hf.rows, tokens),
    "padding-free": Setup(SFTTrainer, SFTConfig, llama, hf.rows, tokens, PADDING_FREE),
    "packed": Setup(PackedTrainer, SFTConfig, llama, hf.rows, tokens, PACKED),
    "flattened": Setup(FLATTENED, TrainingArguments, llama, hf.rows, tokens),
    "DPO": Setup(DPOTrainer, DPOConfig, llama, preferences, preference, {"beta": BETA}, False),
    "reward": Setup(RewardTrainer, RewardConfig, scorer, with_margins, scores, {}, False),
}


class Pinned(TrainerCallback):
    """Holds a domain's weights away from its importance, so that rows have unequal multipliers."""

    def __init__(self, adaptmix: AdaptMixCallback) -> None:
        self.adaptmix = adaptmix

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pin the first domain."""
        controller = self.adaptmix.controller
        controller.pin(controller.mixture.domains[0], sampling=0.6, loss=1.3)


class Judge(TrainerCallback):
    """Compares the gradient of each step with that of the objective over the rows of all processes.

    A row of domain i counts π_i w_i / (share_i B), and each of its tokens one over the domain's
    mean number of tokens in a row.
    """

    def __init__(self, setup: Setup, adaptmix: AdaptMixCallback, draws: Sequence[Draw]) -> None:
        self.setup, self.adaptmix, self.draws = setup, adaptmix, draws
        self.dataset: Any = None
        self.errors: list[float] = []
        self.masses: list[float] = []
        self.uneven = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare before the optimizer changes the model."""
        live = [p for p in kwargs["model"].parameters() if p.requires_grad]
        reference = self.setup.model().to(live[0].device)
        mine = [p for p in reference.parameters() if p.requires_grad]
        with torch.no_grad():
            for own, theirs in zip(mine, live, strict=True):
                own.copy_(theirs)
        wanted = torch.autograd.grad(self._objective(reference, state.global_step), mine)
        got = torch.cat([p.grad.flatten() for p in live if p.grad is not None])
        flat = torch.cat([g.flatten() for g in wanted])
        self.errors.append(float((got - flat).norm() / flat.norm()))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep how much of the gradient was measured; after this the probe is gone."""
        watch = self.adaptmix._watch
        assert watch is not None and watch.coverage is not None
        self.masses.append(watch.coverage.mass or 0.0)

    def _objective(self, model: Any, step: int) -> Tensor:
        controller = self.adaptmix.controller
        weights = controller.weights
        drawn = list(_everyones([draw for draw in self.draws if draw.step == step]))
        tokens = self._tokens(controller.mixture.domains)
        total = torch.zeros((), device=model.device)
        for rows, domains, shares in drawn:
            for row, i in zip(rows, domains, strict=True):
                loss = self.setup.row_loss(model, self.dataset[row])
                factor = weights.importance[i] * weights.loss[i] / (shares[i] * ROWS)
                total = total + float(factor / tokens[i]) * loss
                self.uneven |= bool(abs(factor * ROWS - 1.0) > 0.05)
        return total

    def _tokens(self, names: Sequence[str]) -> list[float]:
        if not self.setup.per_token:
            return [1.0] * len(names)
        rows = self.dataset.with_format(None)
        numbers = np.array([supervised(row) for row in rows])
        own = np.array(rows["source"])
        return [float(numbers[own == name].mean()) for name in names]


def _everyones(draws: list[Draw]) -> Iterator[tuple[list[int], list[int], Any]]:
    """Yield rows, domains and shares of micro-batches, without the rows that are held out."""
    mine = []
    for draw in draws:
        counted = torch.ones_like(draw.rows, dtype=torch.bool) if draw.held is None else ~draw.held
        rows, domains = draw.rows[counted].tolist(), draw.domains[counted].tolist()
        mine.append((rows, domains, draw.domain_shares))
    if not dist.is_initialized():
        yield from mine
        return
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    for part in gathered:
        yield from part


def run(
    folder: Path | str,
    name: str,
    policy: str,
    accumulation: int,
    processes: int,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Train one of ``SETUPS``, or the rest of it; return all that must not differ.

    Every step's gradient is that of the objective, and all of it is measured.
    """
    setup = SETUPS[name]
    adaptmix = AdaptMixCallback("source", policy=policy, update_every=1, lag=1)
    out = Path(folder) / f"{name}-{policy}-{accumulation}-{processes}"
    record = hf.Record()
    with pytest.MonkeyPatch.context() as patch:
        judge = Judge(setup, adaptmix, runs.record_draws(patch))
        trainer = setup.kind(
            model=setup.model(),
            args=config(
                setup.config,
                out,
                per_device_train_batch_size=ROWS // accumulation // processes,
                gradient_accumulation_steps=accumulation,
                max_steps=STEPS,
                save_strategy="steps",
                save_steps=STOP,
                **setup.changes,
            ),
            train_dataset=setup.data(),
            processing_class=words(),
            callbacks=[adaptmix, record, Pinned(adaptmix), judge],
            **({"ref_model": hf.llama(1, **SMALL).eval()} if name == "DPO" else {}),
        )
        judge.dataset = trainer.train_dataset
        trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{STOP}") if resume else None)
    assert len(judge.errors) == STEPS - STOP * resume
    assert max(judge.errors) < 2e-5, (name, policy, judge.errors)
    assert judge.masses[0] >= 0.98, (name, policy, judge.masses)
    assert judge.uneven  # so that an unweighted gradient would have shown
    return {
        "parameters": hf.parameters(trainer.accelerator.unwrap_model(trainer.model)),
        "gradients": torch.stack(record.gradients),
        "shares": adaptmix.controller.weights.sampling,
        "loss weights": adaptmix.controller.weights.loss,
        "seen": adaptmix.controller.statistics.grad_sq,
    }


def stop_and_go_on(
    folder: Path | str, name: str, policy: str, accumulation: int, processes: int
) -> dict[str, Any]:
    """Train a set-up, whole and from where it stopped; return the whole run.

    The second run is the rest of the first, to the bit.
    """
    first = run(folder, name, policy, accumulation, processes)
    rest = run(folder, name, policy, accumulation, processes, resume=True)
    assert torch.equal(first["parameters"], rest["parameters"]), name
    assert torch.equal(first["gradients"][STOP:], rest["gradients"]), name
    np.testing.assert_array_equal(first["shares"], rest["shares"])
    np.testing.assert_array_equal(first["loss weights"], rest["loss weights"])
    return first
