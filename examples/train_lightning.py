"""Lightning: one callback on a module and a loader as they are.

``--task digits`` has domains with right, partly wrong and mostly wrong labels; ``--task text`` five
domains of bytes. ``--mode observe`` trains without weights and only measures.

Digits, mean test accuracy of five seeds: 0.914 observing and 0.945 adapting after 1500 steps, when
the wrong labels are being learnt; 0.924 and 0.926 after 600, when they are not yet.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from digits_data import Parts, digits
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from quickstart_data import IGNORED, builtin_domains
from quickstart_model import ByteLM
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from adaptmix import Mixture, noise
from adaptmix_lightning import AdaptMixCallback

LENGTH = 64


class Task(LightningModule):
    """Classifies rows, or every next byte of rows: (B, 64) to logits (B, 10) or (B, 64, 256)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        inputs, labels = batch
        logits = self.net(inputs)
        losses = F.cross_entropy(
            logits.movedim(-1, 1), labels, ignore_index=IGNORED, reduction="none"
        )
        self.log("train_loss", losses.mean(), prog_bar=True)
        terms = noise.softmax(logits, labels)
        # Without adaptmix this would end in: return losses.mean()
        return {"loss": losses, "loss_mask": labels != IGNORED, "noise": terms}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        inputs, labels = batch
        kept = labels != IGNORED
        right = self.net(inputs).argmax(-1)[kept] == labels[kept]
        self.log("accuracy", right.float().mean(), on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=2e-3)


class HeldOutNoise(Callback):
    """Keeps noise up to date where domains repeat: fitted rows look less noisy than they are."""

    def __init__(self, mixer: AdaptMixCallback, heldout: Parts) -> None:
        self.mixer, self.heldout = mixer, heldout

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        for name, rows in self.heldout.items():
            inputs, labels = (part.to(pl_module.device) for part in rows.tensors)
            self.mixer.controller.record_noise(noise.softmax(pl_module.net(inputs), labels), name)


def load(task: str) -> tuple[nn.Module, dict[str, Dataset[Any]], Parts, list[Dataset[Any]]]:
    """Return the network, and the rows to train on, to measure noise on, and to test on."""
    if task == "digits":
        train, heldout, test = digits()
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        return net, {**train}, heldout, [test]
    domains = builtin_domains(length=LENGTH, heldout=200).items()
    parts: dict[str, Dataset[Any]] = {name: domain.train for name, domain in domains}
    return ByteLM(LENGTH), parts, {}, [domain.heldout for _, domain in domains]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("digits", "text"), default="digits")
    parser.add_argument("--mode", choices=("adapt", "observe"), default="adapt")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--out", default="runs/lightning")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(0)
    net, parts, heldout, tests = load(args.task)
    # A mixture is a dataset; with a dataset of your own, pass a label per row or a column's name.
    data = Mixture(parts, importance=dict.fromkeys(parts, 1.0))
    mixer = AdaptMixCallback(policy="joint", mode=args.mode)
    trainer = Trainer(
        max_steps=args.steps,
        max_epochs=-1,
        callbacks=[mixer, HeldOutNoise(mixer, heldout)],
        devices=args.devices,
        accumulate_grad_batches=args.accumulate,
        logger=TensorBoardLogger(args.out),
    )
    task = Task(net)
    trainer.fit(task, DataLoader(data, batch_size=32, shuffle=True))
    print(mixer.controller.report())
    trainer.test(task, [DataLoader(test, batch_size=200) for test in tests])


if __name__ == "__main__":
    main()
