"""Small real Lightning runs that tests drive."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader

from tests import runs

# Lightning's own use of torch, and its advice on settings that tests choose on purpose.
FILTERS = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


class Classifier(LightningModule):
    """A float64 classifier; ``per_sample`` is all that it knows of AdaptMix."""

    def __init__(self, *, per_sample: bool = True) -> None:
        super().__init__()
        self.net = runs.model()
        self.per_sample = per_sample
        self.rows: list[list[int]] = []
        self.batches: list[Any] = []
        self.gradients: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets, rows = batch
        self.rows.append(rows.tolist())
        self.batches.append(batch)
        reduction = "none" if self.per_sample else "mean"
        logits = self.net(inputs.to(self.net[0].weight.dtype))
        return F.cross_entropy(logits, targets, reduction=reduction)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        parts = [p.grad.flatten().clone() for p in self.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(parts))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def dataset() -> ConcatDataset[Any]:
    """Three domains of different size and input scale."""
    parts = enumerate(runs.SIZES)
    return ConcatDataset([runs.dataset(n, seed=i, scale=3.0**i) for i, n in parts])


def loader(batch_size: int = 12, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset(), batch_size=batch_size, shuffle=True, **options)


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **(quiet | options))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
