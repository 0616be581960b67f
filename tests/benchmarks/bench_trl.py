"""TRL's trainers with and without adaptmix: whole runs, and how full packs are.

Runs take turns, and process time is compared, so that a busy neighbour costs both alike. Results go
to ``results/trl.md``: ``python -m tests.benchmarks.bench_trl``.
"""

from __future__ import annotations

import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, pack_dataset

from adaptmix_transformers import AdaptMixCallback, AdaptMixMixin

RESULTS = Path(__file__).parent / "results" / "trl.md"
ROUNDS, STEPS, ROWS, VOCABULARY = 5, 100, 2000, 512
LENGTHS = {"short": (8, 40), "medium": (20, 120), "long": (60, 400)}


class PackedTrainer(AdaptMixMixin, SFTTrainer):  # type: ignore[misc]
    """Packs each domain by itself."""


def texts(rows: int = ROWS) -> Dataset:
    """Rows of three domains, whose lengths differ."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(rows):
        source = ["short", "medium", "long"][number % 3]
        length = int(rng.integers(*LENGTHS[source]))
        ids = rng.integers(3, VOCABULARY, length).tolist()
        made.append({"input_ids": ids, "labels": ids, "source": source})
    return Dataset.from_list(made)


def pairs(rows: int = ROWS) -> Dataset:
    """Preferences of random words."""
    rng = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(3, VOCABULARY, length))

    return Dataset.from_list(
        [
            {
                "prompt": text(24),
                "chosen": " " + text(int(rng.integers(8, 40))),
                "rejected": " " + text(int(rng.integers(8, 40))),
                "source": ["a", "b", "c"][number % 3],
            }
            for number in range(rows)
        ]
    )


def model() -> Any:
    """About as large as the quickstart's: 2 layers of width 128."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    kind: Any = LlamaForCausalLM
    return kind(LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, **shape))


def words() -> Any:
    """A tokenizer of words that are their numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    kind: Any = transformers.PreTrainedTokenizerFast
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return kind(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def seconds(kind: Any, config: Any, data: Dataset, adaptmix: bool, **changes: Any) -> float:
    """Process time of one run, without the preparation of its data."""
    given: dict[str, Any] = {}
    if adaptmix:
        callback = AdaptMixCallback("source")
        given = {"adaptmix": callback} if kind is PackedTrainer else {"callbacks": [callback]}
    net = model()
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model=net,
            args=config(
                folder,
                max_steps=STEPS,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
                **changes,
            ),
            train_dataset=data,
            processing_class=words(),
            **given,
            **({"ref_model": deepcopy(net)} if kind is DPOTrainer else {}),
        )
        begun = time.process_time()
        trainer.train()
        return time.process_time() - begun


def ratio(run: Callable[[bool], float]) -> str:
    """Median ratio of runs with and without, in turns, and its range."""
    run(True)  # warm
    found = []
    for number in range(ROUNDS):
        order = (True, False) if number % 2 else (False, True)
        times = {adaptmix: run(adaptmix) for adaptmix in order}
        found.append(times[True] / times[False])
    return f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def fullness(data: Dataset, length: int) -> tuple[float, float]:
    """How full packs are of TRL, which mixes domains, and of each domain by itself."""
    rows = data.select_columns(["input_ids"])
    mixed = pack_dataset(rows, length)
    labels = np.array(data["source"])
    parts = [pack_dataset(rows.select(np.flatnonzero(labels == n)), length) for n in LENGTHS]
    apart = [len(ids) for part in parts for ids in part["input_ids"]]
    return (
        float(np.mean([len(ids) for ids in mixed["input_ids"]])) / length,
        float(np.mean(apart)) / length,
    )


def main() -> None:
    """Measure, and write the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    data = texts()
    table = {
        "SFT, padded, 8 rows": ratio(
            lambda on: seconds(SFTTrainer, SFTConfig, data, on, per_device_train_batch_size=8)
        ),
        "SFT, padding-free, 8 rows": ratio(
            lambda on: seconds(
                SFTTrainer,
                SFTConfig,
                data,
                on,
                per_device_train_batch_size=8,
                padding_free=True,
                max_length=None,
            )
        ),
        "SFT, packed, 3 packs of 512": ratio(
            lambda on: seconds(
                PackedTrainer,
                SFTConfig,
                data,
                on,
                per_device_train_batch_size=3,
                packing=True,
                max_length=512,
            )
        ),
        "DPO, 8 pairs": ratio(
            lambda on: seconds(DPOTrainer, DPOConfig, pairs(), on, per_device_train_batch_size=8)
        ),
    }
    lines = [
        "# TRL with adaptmix",
        "",
        f"Whole runs of {STEPS} steps, process time with the default callback over that without, "
        f"median and range of {ROUNDS} rounds in turns. Llama of 2 layers, width 128, vocabulary "
        f"{VOCABULARY}, random tokens. One thread, {platform.machine()} CPU, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}.",
        "",
        "| run | with / without |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in table.items()),
        "",
        f"How full packs are of {ROWS} rows of three domains (8 to 40, 20 to 120 and 60 to 400 "
        "tokens), in the mean over packs:",
        "",
        "| length | TRL's, of mixed domains | of each domain by itself |",
        "|---|---|---|",
    ]
    for length in (512, 1024, 2048):
        mixed, apart = fullness(data, length)
        lines.append(f"| {length} | {mixed:.1%} | {apart:.1%} |")
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
