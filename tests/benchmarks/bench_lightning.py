"""What the callback costs a Lightning Trainer per step, on the text task, interleaved.

Three trainers take turns in random order: a plain one, the same again (the noise floor), and one
with the callback. Each trains in its own thread, and one at a time: a callback hands over to the
next after every block of ten steps (one observation and one update each, at the defaults). Each
block's processor time is divided by that of the plain block of the same round.

Run ``PYTHONPATH=examples:integrations python -m tests.benchmarks.bench_lightning``.
"""

from __future__ import annotations

import argparse
import logging
import random
import threading
import time
import warnings
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from quickstart import IGNORED, LENGTH, ByteLM, python_text
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from adaptmix import noise
from adaptmix_lightning import AdaptMixCallback

BLOCK = 10


class Text(LightningModule):
    def __init__(self, *, adapted: bool, policy: str) -> None:
        super().__init__()
        self.net, self.adapted, self.joint = ByteLM(96), adapted, policy == "joint"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        logits = self.net(inputs)
        losses = F.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        mask = labels != IGNORED
        if not self.adapted:
            return (losses.sum(1) / mask.sum(1)).mean()
        terms = noise.softmax(logits, labels) if self.joint else None
        return {"loss": losses, "loss_mask": mask, "noise": terms}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


class Turns(Callback):
    """Trains a block of steps when told to, and says how much processor time it took."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds, self._steps, self._start = 0.0, 0, 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        if self._steps % BLOCK == 0:
            self.go.acquire()
            self._start = time.thread_time()
        self._steps += 1

    def on_train_batch_end(self, *args: Any) -> None:
        if self._steps % BLOCK == 0:
            self.seconds = time.thread_time() - self._start
            self.done.release()

    def block(self) -> float:
        """Train one block."""
        self.go.release()
        self.done.acquire()
        return self.seconds


def start(mixer: AdaptMixCallback | None, module: Text, data: Any, args: Any) -> Turns:
    """Start a trainer's thread; it waits for its first turn."""
    turns = Turns()
    trainer = Trainer(
        max_steps=BLOCK * (args.rounds + 1),
        max_epochs=-1,
        callbacks=[*([mixer] if mixer else []), turns],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(data, batch_size=args.batch_size, shuffle=True)
    threading.Thread(target=trainer.fit, args=(module, loader), daemon=True).start()
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32, help="as in the example")
    parser.add_argument("--policy", default="joint", help="variance_aware takes no noise terms")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    parts: list[Dataset[Any]] = [rows for rows, _ in python_text().values()]
    data: ConcatDataset[Any] = ConcatDataset(parts)
    arms = {
        name: start(
            AdaptMixCallback(policy=args.policy) if name == "callback" else None,
            Text(adapted=name == "callback", policy=args.policy),
            data,
            args,
        )
        for name in ("plain", "plain again", "callback")
    }
    for turns in arms.values():
        turns.block()
    shuffled = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name in shuffled.sample(list(arms), len(arms)):
            times[name].append(arms[name].block())
    base = np.array(times["plain"])
    setup = f"torch {torch.__version__}, CPU, 1 thread, batch {args.batch_size} x {LENGTH} bytes"
    step = 1e3 * np.median(base) / BLOCK
    print(f"{setup}, {args.policy}, {args.rounds} rounds; plain step {step:.1f} ms")
    print("| trainer | step / plain step | quartiles |\n|---|---|---|")
    for name, seconds in times.items():
        low, median, high = np.quantile(np.array(seconds) / base, (0.25, 0.5, 0.75))
        print(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
