"""Supervised fine-tuning with TRL on several domains, with AdaptMix as a callback.

pip install ".[transformers]" trl       # in a clone of AdaptMix
python train_trl.py                          # questions of three kinds, made on the spot
python train_trl.py --data mine=a.jsonl      # your own, with "prompt" and "completion"
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from adaptmix_transformers import AdaptMixCallback, AdaptMixMixin


class PackedTrainer(AdaptMixMixin, SFTTrainer):
    """Lets adaptmix see the rows before they are packed, so that a pack is of one domain."""


def questions(rows: int = 3000) -> Dataset:
    """Return sums, sums in reverse, and counting, whose answers are long and easy."""
    rng = random.Random(0)
    made = []
    for _ in range(rows):
        a, b, source = rng.randrange(50), rng.randrange(50), rng.choice(["sum", "mirror", "count"])
        answer = " ".join(map(str, range(a, a + 8))) if source == "count" else str(a + b)
        answer = answer[::-1] if source == "mirror" else answer
        made.append({"prompt": f"{source} {a} {b} = ", "completion": answer, "source": source})
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
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="runs/trl")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    data = questions()
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
    model = LlamaForCausalLM(shape)
    callback = AdaptMixCallback("source")
    trainer = PackedTrainer(
        model=model,
        args=SFTConfig(
            args.out,
            packing=True,
            max_length=256,
            per_device_train_batch_size=6,
            learning_rate=2e-3,
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
        adaptmix=callback,
    )
    trainer.train()
    print(callback.controller.report())


if __name__ == "__main__":
    main()
