"""Fine-tune a small causal LM with the Trainer on several domains, with adaptmix as a callback.

``python examples/train_transformers.py`` trains on the quickstart's text; ``--data name=path ...``
on your own files (.txt, .jsonl or .parquet with a "text" column); ``--plain`` without adaptmix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from quickstart_data import IGNORED, builtin_domains
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from adaptmix_transformers import AdaptMixCallback

LENGTH = 64


def builtin() -> tuple[Dataset, Dataset]:
    """Return training and held-out rows of the quickstart's domains, bytes as tokens."""
    parts: tuple[list[Dataset], list[Dataset]] = [], []
    for name, domain in builtin_domains(length=LENGTH).items():
        for rows, part in zip(parts, (domain.train, domain.heldout), strict=True):
            # The Trainer's model shifts labels itself; a row's last byte is always an answer's.
            pairs = [part[i] for i in range(len(part))]
            ids = [torch.cat([inputs, labels[-1:]]) for inputs, labels in pairs]
            labels = [torch.cat([torch.tensor([IGNORED]), labels]) for _, labels in pairs]
            columns = {"input_ids": torch.stack(ids), "labels": torch.stack(labels)}
            rows.append(Dataset.from_dict(columns).add_column("source", [name] * len(pairs)))
    return concatenate_datasets(parts[0]), concatenate_datasets(parts[1])


def own(paths: dict[str, str]) -> tuple[Dataset, Dataset]:
    """Return training and held-out rows of text files, a tenth of each held out."""
    kinds = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
    parts: tuple[list[Dataset], list[Dataset]] = [], []
    for name, path in paths.items():
        rows = load_dataset(kinds[Path(path).suffix], data_files=path, split="train")
        text = "\n".join(rows["text"]).encode()
        cut = [list(text[i : i + LENGTH]) for i in range(0, len(text) - LENGTH + 1, LENGTH)]
        data = Dataset.from_dict({"input_ids": cut, "labels": cut, "source": [name] * len(cut)})
        split = data.train_test_split(test_size=0.1, seed=0)
        parts[0].append(split["train"])
        parts[1].append(split["test"])
    return concatenate_datasets(parts[0]), concatenate_datasets(parts[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--plain", action="store_true", help="train without adaptmix")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", default="runs/transformers")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    train, heldout = own(dict(pair.split("=", 1) for pair in args.data)) if args.data else builtin()

    set_seed(0)
    shape = LlamaConfig(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(shape)
    equal = dict.fromkeys(train.unique("source"), 1.0)
    callback = AdaptMixCallback("source", unit="sample", importance=equal)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            args.out,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=100,
            learning_rate=1e-3,
            max_steps=args.steps,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=args.steps // 4,
            report_to=["tensorboard"],
        ),
        train_dataset=train,
        eval_dataset=heldout,
        callbacks=[] if args.plain else [callback],
    )
    trainer.train()
    if not args.plain:
        print(callback.controller.report())


if __name__ == "__main__":
    main()
