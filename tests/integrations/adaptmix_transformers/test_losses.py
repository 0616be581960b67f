"""Whatever model or trainer computes the loss, its gradient is that of the stated objective.

Also tests ``adaptmix_transformers/_reading.py`` and ``adaptmix_transformers/_recognition.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.stepwise import (
    Batch,
    causal,
    check,
    per_row,
    sequences,
)


def test_label_smoothing(tmp_path: Path) -> None:
    check(
        tmp_path,
        lambda model, batch: causal(model, batch, smoothing=0.1),
        label_smoothing_factor=0.1,
    )


# peft asks transformers by the name that every supported release has.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_low_rank_adapters(tmp_path: Path) -> None:
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(hf.llama(), adapters)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at first, and so would be the gradient of A
            nn.init.normal_(parameter)
    check(tmp_path, causal, model=model)


def test_sequence_classification(tmp_path: Path) -> None:
    def rows(model: Any, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return F.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")

    check(tmp_path, rows, model=bert(num_labels=3), collator=sequences)


def bert(**changes: Any) -> Any:
    """A classifier without dropout, which would differ between two forward passes."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    quiet: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=hf.VOCABULARY, intermediate_size=48, **shape, **quiet, **changes)
    return BertForSequenceClassification(config)


def test_regression(tmp_path: Path) -> None:
    def numbers(features: list[dict[str, Any]]) -> Batch:
        batch = sequences(features)
        batch["labels"] = batch["labels"].float()
        return batch

    def rows(model: Any, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        losses: Tensor = (model(**inputs).logits[:, 0] - batch["labels"]).square()
        return losses

    check(tmp_path, rows, model=bert(num_labels=1), collator=numbers)


def test_several_labels(tmp_path: Path) -> None:
    def several(features: list[dict[str, Any]]) -> Batch:
        batch = sequences(features)
        batch["labels"] = F.one_hot(batch["labels"], 3).float()
        return batch

    def rows(model: Any, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return F.binary_cross_entropy_with_logits(
            model(**inputs).logits, batch["labels"], reduction="none"
        ).mean(1)

    model = bert(num_labels=3, problem_type="multi_label_classification")
    check(tmp_path, rows, model=model, collator=several)


def test_encoder_and_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_layers": 1, "num_heads": 2}
    config: Any = T5Config(vocab_size=hf.VOCABULARY, dropout_rate=0.0, **shape)
    config.decoder_start_token_id = 0

    def rows(model: Any, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        labels = batch["labels"]
        losses = F.cross_entropy(model(**inputs).logits.transpose(1, 2), labels, reduction="none")
        return per_row(losses, labels != -100)

    check(tmp_path, rows, model=T5ForConditionalGeneration(config))


def test_auxiliary_losses_stay_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads: dict[str, Any] = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
    }
    config = MixtralConfig(
        vocab_size=hf.VOCABULARY,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
        **shape,
        **heads,
    )

    def rest(model: Any, batch: Batch) -> Tensor:
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        added: Tensor = 0.5 * outputs.aux_loss
        return added

    model = MixtralForCausalLM(config)
    check(tmp_path, causal, model=model, rest=rest)


class Penalised(hf.RecordingTrainer):
    """A user's compute_loss that does more with the model's loss."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Twice the model's loss, and a penalty."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        penalty = sum(p.square().sum() for p in model.parameters())
        if isinstance(loss, tuple):
            return 2.0 * loss[0] + 0.01 * penalty, loss[1]
        return 2.0 * loss + 0.01 * penalty


def test_what_compute_loss_makes_of_the_models_loss_is_kept(tmp_path: Path) -> None:
    def rest(model: Any, _: Batch) -> Tensor:
        return 0.01 * torch.stack([p.square().sum() for p in model.parameters()]).sum()

    check(tmp_path, causal, kind=Penalised, rest=rest, scale=2.0)


def test_a_compute_loss_func_is_found_out(tmp_path: Path) -> None:
    def mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs.logits[:, :-1].transpose(1, 2)
        total = F.cross_entropy(logits, labels[:, 1:], reduction="sum")
        loss: Tensor = total / num_items_in_batch
        return loss

    check(tmp_path, causal, trainer_options={"compute_loss_func": mean})
