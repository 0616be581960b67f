"""Models that compute their own loss, in the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertForTokenClassification,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import (
    LLAMA,
    gpt2,
    llama,
    logits_of,
    next_tokens,
    token_sum,
    trainer,
)


def _tokens() -> list[Case]:
    tagger = data.bert(BertForTokenClassification)

    def tags(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return token_sum(logits_of(model, batch)[0], batch["labels"][0])

    def mean_tag(model: Any, batch: Any) -> Tensor:
        total, number = tags(model, batch)
        return total / number

    causal = data.causal()

    def experts() -> Any:
        torch.manual_seed(7)
        config = MixtralConfig(num_local_experts=2, num_experts_per_tok=2, **LLAMA)
        return MixtralForCausalLM(config)

    def t5_model() -> Any:
        sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1}
        config = T5Config(vocab_size=data.VOCABULARY, num_heads=2, dropout_rate=0.0, **sizes)
        config.decoder_start_token_id = 0
        return T5ForConditionalGeneration(config)

    t5 = data.built(t5_model)
    answers = [t | {"labels": t["input_ids"][::-1]} for t in data.texts()]

    def translated(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits = model(**batch).logits
        return token_sum(logits[0], batch["labels"][0])

    uneven: dict[str, Any] = {"importance": {"web": 1.0, "code": 2.0, "math": 1.0}}
    return [
        trainer("token classification", tagger, data.tagged(), row_loss=tags, expect="right"),
        trainer(
            "token classification, accumulation",
            tagger,
            data.tagged(),
            arguments={"gradient_accumulation_steps": 2},
            row_loss=tags,
            expect="right",
        ),
        trainer(
            "token classification, unit sample",
            tagger,
            data.tagged(),
            callback={"unit": "sample"},
            row_loss=mean_tag,
        ),
        trainer(
            "token classification, rows without labels",
            tagger,
            data.tagged(unsupervised=0.3),
            row_loss=tags,
        ),
        trainer("GPT-2", gpt2(GPT2LMHeadModel), causal, row_loss=next_tokens, expect="right"),
        trainer("Llama", llama(), causal, row_loss=next_tokens, callback=uneven, expect="right"),
        trainer(
            "Llama, accumulation",
            llama(),
            causal,
            row_loss=next_tokens,
            arguments={"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4},
            expect="right",
        ),
        trainer(
            "Llama, label smoothing",
            llama(),
            causal,
            arguments={"label_smoothing_factor": 0.1},
            row_loss=lambda model, batch: token_sum(
                logits_of(model, batch)[0, :-1], batch["labels"][0, 1:], label_smoothing=0.1
            ),
        ),
        trainer(
            "mixture of experts",
            experts,
            causal,
            row_loss=next_tokens,
            tolerance=1e-4,  # grouped products of experts have no float64
            expect="right",
        ),
        trainer("T5", t5, answers, row_loss=translated, expect="right"),
    ]


CASES = _tokens()
