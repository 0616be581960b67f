"""Set-ups as users of TRL write them; its fused heads have float32 alone."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import LLAMA, token_sum, trainer

BETA = 0.1


def tokenizer() -> Any:
    """Words w3 … are their numbers."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    words |= {f"w{i}": i for i in range(3, data.VOCABULARY)}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def trl(
    name: str,
    kind: Any,
    config: Any,
    model: Any,
    rows: data.Rows,
    collate: Any,
    *,
    arguments: dict[str, Any] | None = None,
    options: Any = dict,
    **case: Any,
) -> Case:
    """A case of TRL, whose trainers tokenise and collate by themselves."""
    return trainer(
        name,
        model,
        rows,
        kind=kind,
        config=config,
        library="TRL",
        collate=collate,
        arguments={"bf16": False, "gradient_checkpointing": False} | (arguments or {}),
        options=lambda: {"processing_class": tokenizer(), **options()},
        tolerance=1e-4,
        **case,
    )


def llama(kind: Any = LlamaForCausalLM, **changes: Any) -> Any:
    """What makes a tiny Llama of a kind in float32."""
    return data.built(lambda: kind(LlamaConfig(**(LLAMA | changes))), torch.float32)


def with_adapters() -> Any:
    """A Llama with LoRA."""
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM(LlamaConfig(**LLAMA)), adapters)


def supervised(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Loss of predicting each next token that is supervised."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return token_sum(logits[0, :-1], batch["labels"][0, 1:])


def _answers() -> tuple[data.Rows, data.Rows]:
    """Prompts with answers; one domain's are short."""
    rows, given = [], []
    for text, name in zip(data.texts(length=10), data.DOMAINS, strict=True):
        start = 9 if name == "code" else 4
        ids = text["input_ids"]
        mask = [0] * start + [1] * (len(ids) - start)
        labels = [-100] * start + ids[start:]
        rows.append({"input_ids": ids, "labels": labels})
        given.append({"input_ids": ids, "completion_mask": mask})
    return rows, given


def _preferences() -> tuple[data.Rows, data.Rows]:
    """Prompts with a better and a worse answer, as ids and as TRL takes them."""
    rows, given = [], []
    for text in data.texts():
        ids = text["input_ids"]
        prompt, chosen = ids[:2], ids[2:]
        rejected = [3 + (i + 5) % (data.VOCABULARY - 3) for i in chosen]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        words = {key: " ".join(f"w{i}" for i in part) for key, part in rows[-1].items()}
        given.append(
            {**words, "chosen": " " + words["chosen"], "rejected": " " + words["rejected"]}
        )
    return rows, given


def pair(rows: Any) -> dict[str, Tensor]:
    """The chosen and the rejected row of one pair, which are alike in length."""
    (row,) = rows
    both = [row["prompt"] + row[key] + [1] for key in ("chosen", "rejected")]
    start = len(row["prompt"])
    return {"input_ids": torch.tensor(both), "start": torch.tensor(start)}


def log_odds(model: Any, batch: Any) -> Tensor:
    """How much likelier the chosen answer is than the rejected one."""
    ids, start = batch["input_ids"], int(batch["start"])
    logits = model(input_ids=ids).logits[:, start - 1 : -1]
    each = -F.cross_entropy(logits.mT, ids[:, start:], reduction="none")
    sums = each.sum(1)
    return sums[0] - sums[1]


def preference(loss: Any, base: Any) -> Any:
    """The stated loss of one pair: f(log odds against those of the initial model)."""
    first = base()

    def row_loss(model: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            start = log_odds(first, batch)
        result: Tensor = loss(log_odds(model, batch) - start)
        return result

    return row_loss


def scores(model: Any, batch: Any) -> Tensor:
    """The loss of a reward model: the chosen answer should have more."""
    outputs = model(
        input_ids=batch["input_ids"], attention_mask=torch.ones_like(batch["input_ids"])
    )
    chosen, rejected = outputs.logits.squeeze(1)
    return -F.logsigmoid(chosen - rejected)


CAUSAL = [text | {"labels": text["input_ids"]} for text in data.texts()]
_SHORT, _SHORT_GIVEN = _answers()
_PAIRS, _PAIRS_GIVEN = _preferences()
_ONLY_IDS = [{"input_ids": row["input_ids"]} for row in CAUSAL]


def _dpo(name: str, kind: str, loss: Any, **changes: Any) -> Case:
    return trl(
        f"DPO, {name}",
        DPOTrainer,
        DPOConfig,
        llama(),
        _PAIRS,
        pair,
        given=_PAIRS_GIVEN,
        arguments={"beta": BETA, "loss_type": [kind]} | changes,
        options=lambda: {"ref_model": llama()().eval()},
        row_loss=preference(loss, llama()),
        expect="right",
    )


CASES = [
    trl(
        "SFT",
        SFTTrainer,
        SFTConfig,
        llama(),
        CAUSAL,
        data.pad,
        given=_ONLY_IDS,
        row_loss=supervised,
        expect="right",
    ),
    trl(
        "SFT, accumulation",
        SFTTrainer,
        SFTConfig,
        llama(),
        CAUSAL,
        data.pad,
        given=_ONLY_IDS,
        arguments={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        row_loss=supervised,
        expect="right",
    ),
    trl(
        "SFT on short answers",
        SFTTrainer,
        SFTConfig,
        llama(),
        _SHORT,
        data.pad,
        given=_SHORT_GIVEN,
        arguments={"completion_only_loss": True},
        row_loss=supervised,
        expect="right",
    ),
    trl(
        "SFT with LoRA",
        SFTTrainer,
        SFTConfig,
        data.built(with_adapters, torch.float32),
        CAUSAL,
        data.pad,
        given=_ONLY_IDS,
        row_loss=supervised,
        expect="right",
    ),
    _dpo("sigmoid", "sigmoid", lambda x: -F.logsigmoid(BETA * x)),
    _dpo("hinge", "hinge", lambda x: torch.relu(1.0 - BETA * x)),
    _dpo(
        "accumulation",
        "sigmoid",
        lambda x: -F.logsigmoid(BETA * x),
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
    ),
    trl(
        "reward model",
        RewardTrainer,
        RewardConfig,
        llama(LlamaForSequenceClassification, num_labels=1),
        _PAIRS,
        pair,
        given=_PAIRS_GIVEN,
        row_loss=scores,
        expect="right",
    ),
]
