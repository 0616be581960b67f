"""Set-ups as users of TRL write them; its fused heads have float32 alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    pack_dataset,
)

from adaptmix_transformers import AdaptMixMixin
from tests.conformance import data
from tests.conformance.harness import Case
from tests.conformance.trainer_kit import LLAMA, token_sum, trainer
from tests.conformance.trainer_kit import llama as llama_trained

BETA = 0.1
FLATTENING: Any = DataCollatorWithFlattening


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


class PackedSFT(AdaptMixMixin, SFTTrainer):  # type: ignore[misc]
    """Packs within domains; the kit gives it its callback as it does to all others."""

    def __init__(self, *args: Any, callbacks: Any, **kwargs: Any) -> None:
        (adaptmix,) = callbacks
        super().__init__(*args, adaptmix=adaptmix, **kwargs)


PACKED: dict[str, Any] = {"packing": True, "max_length": 24, "per_device_train_batch_size": 4}


def _packs() -> tuple[data.Rows, list[str]]:
    """The packs that TRL makes of each domain, and their domains."""
    packs: data.Rows = []
    domains = []
    for name in dict.fromkeys(data.DOMAINS):
        mine = [row for row, own in zip(_ONLY_IDS, data.DOMAINS, strict=True) if own == name]
        for pack in pack_dataset(Dataset.from_list(mine), PACKED["max_length"]):
            starts = np.cumsum([0, *pack["seq_lengths"]])[:-1].tolist()
            labels = [-100 if i in starts else t for i, t in enumerate(pack["input_ids"])]
            packs.append({"input_ids": pack["input_ids"], "labels": labels, "starts": starts})
            domains.append(name)
    return packs, domains


def lone_pack(rows: Any) -> dict[str, Tensor]:
    """One pack with positions that start anew in each of its rows."""
    (pack,) = rows
    ids = torch.tensor([pack["input_ids"]])
    places = torch.arange(ids.shape[1])
    starts = torch.tensor(pack["starts"])
    first = starts[torch.searchsorted(starts, places, right=True) - 1]
    labels = torch.tensor([pack["labels"]])
    return {"input_ids": ids, "labels": labels, "position_ids": (places - first)[None]}


def in_packs(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Loss of predicting each next token of the rows of a pack, which do not see each other."""
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits
    return token_sum(logits[0, :-1], batch["labels"][0, 1:])


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
_PACKS, _PACK_DOMAINS = _packs()


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
        "SFT, padding-free",
        SFTTrainer,
        SFTConfig,
        llama(),
        _SHORT,
        data.pad,
        given=_SHORT_GIVEN,
        arguments={"completion_only_loss": True, "padding_free": True, "max_length": None},
        row_loss=supervised,
        expect="right",
        policies=("forced",),
    ),
    replace(
        trl(
            "SFT, packed",
            PackedSFT,
            SFTConfig,
            llama(),
            _PACKS,
            lone_pack,
            given=_ONLY_IDS,
            arguments=PACKED,
            row_loss=in_packs,
            expect="right",
        ),
        domains=_PACK_DOMAINS,
    ),
    trainer(
        "rows flattened into one",
        llama_trained(),
        CAUSAL,
        collator=FLATTENING(),
        row_loss=supervised,
        expect="right",
        policies=("forced",),
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
