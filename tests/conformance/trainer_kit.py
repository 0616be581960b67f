"""Set-ups as users of the Hugging Face Trainer write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from adaptmix.policies import Policy
from adaptmix_transformers import AdaptMixCallback
from tests.conformance import data, kit
from tests.conformance.harness import STEPS, Case
from tests.devices import USE_CPU

QUIET: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.0,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": USE_CPU,
    "dataloader_pin_memory": False,
    "logging_steps": 10,
}
# Decided every second step, so that forced weights are soon in force; lag covers the look-ahead.
OFTEN: dict[str, Any] = {"update_every": 2, "lag": 4}


def trainer(
    name: str,
    model: Any,
    rows: data.Rows,
    *,
    kind: Any = Trainer,
    config: Any = TrainingArguments,
    library: str = "Trainer",
    given: data.Rows | None = None,
    arguments: dict[str, Any] | None = None,
    callback: dict[str, Any] | None = None,
    options: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
    collate: Any = data.pad,
    collator: Any = None,
    streamed: bool = False,
    **case: Any,
) -> Case:
    """A case of a Trainer, or of TRL's.

    Args:
        name: of the case.
        model: makes the model.
        rows: as ``collate`` takes them.
        kind: the trainer.
        config: its arguments' class.
        library: stands before the name.
        given: the rows as the trainer takes them, where it tokenises them itself.
        arguments: changes of the arguments.
        callback: changes of the callback's settings.
        options: further arguments of the trainer, or what makes them for a run.
        collate: makes a batch of rows for the stated loss, and for the Trainer.
        collator: the Trainer's where it is not ``collate``.
        streamed: whether the rows are of streams.
        case: of the stated loss.
    """
    changed = arguments or {}

    def train(live: Any, policy: Policy | str, folder: Path) -> None:
        pairs = zip(given or rows, data.DOMAINS, strict=True)
        more = options() if callable(options) else dict(options or {})
        if library == "Trainer":
            more["data_collator"] = collator or collate
        dataset: Any = Dataset.from_list([row | {"domain": name} for row, name in pairs])
        settings = OFTEN | (callback or {})
        kind(
            model=live,
            args=config(output_dir=str(folder), **(QUIET | changed)),
            train_dataset=data.streams(rows) if streamed else dataset,
            callbacks=[AdaptMixCallback(None if streamed else "domain", policy=policy, **settings)],
            **more,
        ).train()

    return kit.case(
        f"{library}: {name}", model, train, rows=rows, collate=collate, changes=changed, **case
    )


def logits_of(model: Any, batch: Any) -> Tensor:
    """A model's logits for a batch, without its own loss."""
    logits: Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return logits


def cross_entropy(model: Any, batch: Any) -> Tensor:
    """Loss of a row's class."""
    return F.cross_entropy(logits_of(model, batch), batch["labels"])


def token_sum(logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Sum of token losses of one row, and their number."""
    kept = labels != -100
    return (
        F.cross_entropy(logits[kept], labels[kept], reduction="sum", **options),
        kept.sum(),
    )


def next_tokens(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Loss of predicting each next token of one row."""
    logits = logits_of(model, batch)
    return token_sum(logits[0, :-1], batch["labels"][0, 1:])


class OwnLoss(Trainer):
    """Users override ``compute_loss``; here they say what it is."""

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of a micro-batch."""
        raise NotImplementedError

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss, as the Trainer asks for it."""
        loss = self.loss(model, inputs)
        return (loss, {}) if return_outputs else loss


def with_loss(function: Any, *, extra: Any = None) -> type[Trainer]:
    """A Trainer whose loss is f(logits, labels), plus ``extra(model)``."""

    class Own(OwnLoss):
        def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
            labels = inputs.pop("labels")
            loss: Tensor = function(model(**inputs).logits, labels)
            return loss if extra is None else loss + extra(model)

    return Own


def by_row(function: Any) -> Any:
    """The stated loss of one row for a mean over rows of f(logits, labels)."""
    return lambda model, batch: function(logits_of(model, batch), batch["labels"])


def classifier(**changes: Any) -> Any:
    """What makes a tiny BERT classifier."""
    return data.bert(BertForSequenceClassification, **changes)


LLAMA: dict[str, Any] = {
    "vocab_size": data.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def llama() -> Any:
    """What makes a tiny Llama."""
    return data.built(lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)))


def gpt2(kind: Any, **changes: Any) -> Any:
    """What makes a tiny GPT-2 of a kind."""
    sizes = {"vocab_size": data.VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    options: dict[str, Any] = sizes | no_dropout | {"n_positions": 32, "pad_token_id": 0}
    return data.built(lambda: kind(GPT2Config(**(options | changes))))
