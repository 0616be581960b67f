"""TRL's trainers with and without adaptmix: whole runs, and how full packs are.

Runs take turns, and process time is compared, so that a busy neighbour costs both alike. Results go
to ``results/trl.md``: ``python -m tests.benchmarks.bench_trl``, or with one process for each of the
four runs, ``--only 0 --save 0.json`` to ``--only 3 --save 3.json``, and then ``--merge *.json``.
"""

from __future__ import annotations

import argparse
import json
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
from datasets import Dataset, disable_progress_bars
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, pack_dataset

from adaptmix_transformers import AdaptMixCallback, AdaptMixMixin
from adaptmix_transformers._packs import packs_of

RESULTS = Path(__file__).parent / "results" / "trl.md"
ROWS, VOCABULARY = 2000, 512
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


def seconds(
    kind: Any, config: Any, data: Dataset, steps: int, adaptmix: bool, **changes: Any
) -> float:
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
                max_steps=steps,
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


def ratios(run: Callable[[bool], float], rounds: int) -> list[float]:
    """Time with adaptmix over time without, of runs in turns."""
    run(True)  # warm
    found = []
    for number in range(rounds):
        order = (True, False) if number % 2 else (False, True)
        times = {adaptmix: run(adaptmix) for adaptmix in order}
        found.append(times[True] / times[False])
    return found


def fullness(data: Dataset, length: int) -> tuple[float, float]:
    """How full packs are of TRL, which mixes domains, and of each domain by itself."""
    config = SFTConfig(max_length=length, use_cpu=True, report_to=[])
    mixed = pack_dataset(data.select_columns(["input_ids", "labels"]), length)
    labels = np.array(data["source"])
    parts = [packs_of(data.select(np.flatnonzero(labels == n)), config) for n in LENGTHS]
    apart = [len(ids) for part in parts for ids in part["input_ids"]]
    return (
        float(np.mean([len(ids) for ids in mixed["input_ids"]])) / length,
        float(np.mean(apart)) / length,
    )


def measure(name: str, steps: int) -> Callable[[bool], float]:
    """Return what measures a run of one of ``RUNS``."""
    kind, config, changes = RUNS[name]
    data = pairs() if kind is DPOTrainer else texts()
    return lambda on: seconds(kind, config, data, steps, on, **changes)


RUNS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "SFT, padded, 8 rows": (SFTTrainer, SFTConfig, {"per_device_train_batch_size": 8}),
    "SFT, padding-free, 8 rows": (
        SFTTrainer,
        SFTConfig,
        {"per_device_train_batch_size": 8, "padding_free": True, "max_length": None},
    ),
    "SFT, packed, 3 packs of 512": (
        PackedTrainer,
        SFTConfig,
        {"per_device_train_batch_size": 3, "packing": True, "max_length": 512},
    ),
    "DPO, 8 pairs": (DPOTrainer, DPOConfig, {"per_device_train_batch_size": 8}),
}


def table(found: dict[str, list[float]], steps: int) -> str:
    """Return the page of the results."""
    rows = [
        f"| {name} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        for name, ratios in found.items()
    ]
    lines = [
        "# TRL with adaptmix",
        "",
        f"Whole runs of {steps} steps, process time with the default callback over that without, "
        f"median and range of {min(map(len, found.values()))} rounds in turns. Llama of 2 layers, "
        f"width 128, vocabulary {VOCABULARY}, random tokens. One thread, {platform.machine()} CPU, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, trl "
        f"{trl.__version__}.",
        "",
        "| run | with / without |",
        "|---|---|",
        *rows,
        "",
        "How full packs are of rows of three domains (8 to 40, 20 to 120 and 60 to 400 tokens), in "
        "the mean over packs. TRL packs 1000 rows at a time; adaptmix packs a domain's rows "
        "together, and ends each domain with a pack that may not be full:",
        "",
        "| rows | length | TRL's, of mixed domains | of each domain by itself |",
        "|---|---|---|---|",
    ]
    for rows_in_all in (2000, 12_000):
        data = texts(rows_in_all)
        for length in (512, 1024, 2048):
            mixed, apart = fullness(data, length)
            lines.append(f"| {rows_in_all} | {length} | {mixed:.2%} | {apart:.2%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or put together what several processes measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", type=int, default=range(len(RUNS)))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", type=Path, help="write ratios to this file, and no table")
    parser.add_argument("--merge", type=Path, nargs="+", help="files of --save to make a table of")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bars()
    torch.set_num_threads(1)
    if options.merge:
        parts = [json.loads(path.read_text()) for path in options.merge]
        found = {name: part[name] for name in RUNS for part in parts if name in part}
    else:
        names = [list(RUNS)[number] for number in options.only]
        found = {name: ratios(measure(name, options.steps), options.rounds) for name in names}
    if options.save:
        options.save.write_text(json.dumps(found))
        print(found)
        return
    RESULTS.write_text(table(found, options.steps))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
