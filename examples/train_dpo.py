"""Preference tuning with TRL on several domains, with adaptmix as a callback.

pip install ".[transformers]" trl       # in a clone of AdaptMix
python train_dpo.py                          # preferences of three kinds, made on the spot
python train_dpo.py --data mine=a.jsonl      # your own, with "prompt", "chosen" and "rejected"
"""

from __future__ import annotations

import argparse
import random
from copy import deepcopy
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig, DPOTrainer

from adaptmix_transformers import AdaptMixCallback


def preferences(rows: int = 2000) -> Dataset:
    """Return answers of which the right, the shorter or the friendlier one is preferred."""
    rng = random.Random(0)
    made = []
    for _ in range(rows):
        a, b, source = rng.randrange(50), rng.randrange(50), rng.choice(["right", "short", "kind"])
        good, bad = str(a + b), str(a + b + rng.randrange(1, 9))
        if source == "short":
            good, bad = good, f"{a} and {b} make {good}"
        if source == "kind":
            good, bad = f"with pleasure: {good}", f"again? {good}"
        row = {"prompt": f"{source} {a} + {b} = ", "chosen": good, "rejected": bad}
        made.append({**row, "source": source})
    return Dataset.from_list(made)


def characters() -> Any:
    """Return a tokenizer of printable characters."""
    words = ["<pad>", "<eos>", "<unk>", *map(chr, range(32, 127))]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawTextHelpFormatter)
    parser.description = __doc__
    parser.add_argument("--data", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="runs/dpo")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    data = preferences()
    if args.data:
        parts = []
        for pair in args.data:
            name, path = pair.split("=", 1)
            part = load_dataset("json", data_files=path, split="train")
            parts.append(part.add_column("source", [name] * len(part)))
        data = concatenate_datasets(parts)

    set_seed(0)
    shape = LlamaConfig(
        vocab_size=98,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(shape)  # yours, after supervised fine-tuning
    callback = AdaptMixCallback("source")
    trainer = DPOTrainer(
        model=model,
        ref_model=deepcopy(model),
        args=DPOConfig(
            args.out,
            per_device_train_batch_size=16,
            learning_rate=5e-4,
            max_steps=args.steps,
            logging_steps=20,
            save_strategy="no",
            gradient_checkpointing=False,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            report_to=["tensorboard"],
        ),
        train_dataset=data,
        processing_class=characters(),
        callbacks=[callback],
    )
    trainer.train()
    print(callback.controller.report())


if __name__ == "__main__":
    main()
