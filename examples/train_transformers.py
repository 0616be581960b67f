"""Pretrain a small causal LM with the Trainer on several domains, with AdaptMix as a callback.

pip install ".[transformers]" datasets  # in a clone of AdaptMix
python train_transformers.py                                  # text that every Python carries
python train_transformers.py --data mine=a.txt yours=b.txt    # your own files
python train_transformers.py --plain                          # without adaptmix
"""

from __future__ import annotations

import argparse
import importlib
import sysconfig
import unicodedata
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from adaptmix_transformers import AdaptMixCallback

LENGTH, IGNORED = 64, -100


def rows(source: str, texts: list[bytes], answers: list[int]) -> Dataset:
    """Return rows of bytes, of which the last ``answers[i]`` are predicted."""
    ids = [list(text[-LENGTH:].rjust(LENGTH, b"\0")) for text in texts]
    cuts = [LENGTH - length for length in answers]
    labels = [[IGNORED] * cut + row[cut:] for row, cut in zip(ids, cuts, strict=True)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "source": [source] * len(ids)})


def long_text(source: str, text: bytes) -> Dataset:
    texts = [text[i : i + LENGTH] for i in range(0, len(text) - LENGTH, LENGTH)][:10_000]
    return rows(source, texts, [LENGTH] * len(texts))


def python_text() -> list[Dataset]:
    """Return four domains of every complete Python: code, prose, and two kinds of questions."""
    code = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    manual = importlib.import_module("pydoc_data.topics").topics
    named = [(c, name) for c in map(chr, range(0x3000)) if (name := unicodedata.name(c, ""))]
    categories = [f"{name}: {unicodedata.category(c)}".encode() for c, name in named]
    points = [f"{name} = {ord(c):04X}".encode() for c, name in named]
    return [
        long_text("code", b"\n".join(path.read_bytes() for path in code)),
        long_text("manual", "\n".join(manual.values()).encode()),
        rows("category", categories, [2] * len(categories)),
        rows("code point", points, [4] * len(points)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawTextHelpFormatter)
    parser.description = __doc__
    parser.add_argument("--data", nargs="+", metavar="NAME=PATH", help="your own text files")
    parser.add_argument("--plain", action="store_true", help="train without adaptmix")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", default="runs/transformers")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    files = dict(pair.split("=", 1) for pair in args.data or [])
    own = [long_text(name, Path(path).read_bytes()) for name, path in files.items()]
    data = concatenate_datasets(own or python_text()).train_test_split(test_size=0.05, seed=0)

    set_seed(0)
    shape = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    equal = dict.fromkeys(data["train"].unique("source"), 1.0)
    callback = AdaptMixCallback("source", unit="sample", importance=equal)
    trainer = Trainer(
        model=LlamaForCausalLM(shape),
        args=TrainingArguments(
            args.out,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=100,
            learning_rate=2e-3,
            max_steps=args.steps,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=max(1, args.steps // 4),
            report_to=["tensorboard"],
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        callbacks=[] if args.plain else [callback],
    )
    trainer.train()
    if not args.plain:
        print(callback.controller.report())


if __name__ == "__main__":
    main()
