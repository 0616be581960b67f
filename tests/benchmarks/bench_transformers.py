"""Whole runs of the Trainer with the callback against without it, interleaved in one process.

Rounds train the same model from the same seed, for the same number of steps, without the callback,
without it again (the noise floor), with it at its defaults, and with gradients observed in every
step, in random order. The processor time of each ``trainer.train()``, first proofs included, is
divided by that of the plain run of its round.

Run ``PYTHONPATH=integrations:examples python -m tests.benchmarks.bench_transformers`` from the
repository's root.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from adaptmix_transformers import AdaptMixCallback

LENGTH, ROWS, DOMAINS = 64, 4000, 5


def data() -> Dataset:
    """Five domains of random bytes."""
    rng = np.random.default_rng(0)
    ids = rng.integers(256, size=(ROWS * DOMAINS, LENGTH))
    source = np.repeat([f"domain {i}" for i in range(DOMAINS)], ROWS)
    return Dataset.from_dict({"input_ids": ids, "labels": ids, "source": source})


def llama() -> Any:
    shape = LlamaConfig(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(shape)


def gpt2() -> Any:
    shape = GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=96, n_layer=2, n_head=4)
    return GPT2LMHeadModel(shape)


MODELS: dict[str, Callable[[], Any]] = {"gpt2": gpt2, "llama": llama}
EVERY = {"adaptmix": 10, "observed every step": 1}


def run(rows: Dataset, args: argparse.Namespace, callbacks: list[Any]) -> float:
    """Return the processor time that training takes, in seconds."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=args.batch_size,
            max_steps=args.steps,
            logging_steps=args.steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(MODELS[args.model](), arguments, train_dataset=rows, callbacks=callbacks)
        start = time.process_time()
        trainer.train()
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = data()
    arms = ("plain", "plain again", *EVERY)
    shuffled = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name in shuffled.sample(arms, len(arms)):
            every = EVERY.get(name)
            callbacks = [AdaptMixCallback("source", measure_every=every)] if every else []
            times[name].append(run(rows, args, callbacks))
    base = np.array(times["plain"])
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, CPU, 1 thread, "
        f"{args.model}, {args.steps} steps of {args.batch_size} x {LENGTH} tokens, "
        f"{args.rounds} rounds; "
        f"plain run {np.median(base):.1f} s"
    )
    print("| run | time / plain run | quartiles |\n|---|---|---|")
    for name, seconds in times.items():
        low, median, high = np.quantile(np.array(seconds) / base, (0.25, 0.5, 0.75))
        print(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
