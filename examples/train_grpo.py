"""GRPO with TRL on several tasks, with adaptmix as a callback.

pip install ".[transformers]" trl       # in a clone of AdaptMix
python train_grpo.py                         # four tasks with symbols, made on the spot
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

from adaptmix_transformers import AdaptMixCallback

TASKS, SYMBOLS = ("copy", "shift", "table", "never"), 16
WORDS = ["<pad>", "<eos>", "<unk>", *TASKS, *(f"s{i}" for i in range(SYMBOLS))]


def answer(task: str, question: int) -> str:
    """Return the right symbol."""
    table = random.Random(0).sample(range(SYMBOLS), SYMBOLS)
    if task == "shift":
        return f"s{(question + 3) % SYMBOLS}"
    return f"s{table[question] if task == 'table' else question}"


def right(completions: list[str], task: list[str], question: list[int], **_: Any) -> list[float]:
    """Reward completions that begin with the right symbol; "never" has none."""
    asked = zip(completions, task, question, strict=True)
    return [float(t != "never" and told.split()[:1] == [answer(t, q)]) for told, t, q in asked]


def tokenizer() -> Any:
    """Return a tokenizer of whole words."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tuned(model: Any, encode: Any, steps: int = 300) -> Any:
    """Fine-tune a model on answers: right ones in "copy", and mostly guesses in other tasks."""
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(0)
    for _ in range(steps):
        rows = []
        for _ in range(64):
            task, q = rng.choice(TASKS), rng.randrange(SYMBOLS)
            known = task == "copy" or rng.random() < 0.2
            rows.append(f"{task} s{q} {answer(task, q) if known else f's{rng.randrange(SYMBOLS)}'}")
        ids = torch.tensor([[*each, 1] for each in encode(rows)["input_ids"]])
        F.cross_entropy(model(input_ids=ids).logits[:, 1:-1].mT, ids[:, 2:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawTextHelpFormatter)
    parser.description = __doc__
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="runs/grpo")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    rows = [(task, q) for task in TASKS for q in range(SYMBOLS)]
    data = [{"prompt": f"{task} s{q}", "task": task, "question": q} for task, q in rows]

    set_seed(0)
    words = tokenizer()
    shape = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    callback = AdaptMixCallback("task")
    trainer = GRPOTrainer(
        model=tuned(LlamaForCausalLM(shape), words),  # yours, after supervised fine-tuning
        reward_funcs=right,
        args=GRPOConfig(
            args.out,
            per_device_train_batch_size=128,
            num_generations=8,
            max_completion_length=2,
            learning_rate=5e-4,
            max_steps=args.steps,
            logging_steps=20,
            save_strategy="no",
            gradient_checkpointing=False,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            report_to=["tensorboard"],
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=words,
        callbacks=[callback],
    )
    trainer.train()
    print(callback.controller.report())


if __name__ == "__main__":
    main()
