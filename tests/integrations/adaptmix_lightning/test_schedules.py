"""Lightning follows schedules, fixed shares and the seed of rows, and goes on with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset, default_collate

from adaptmix import Schedule, policies
from adaptmix_lightning import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_lightning import pl

pytestmark = pl.FILTERS

NAMES, SIZES = ("0", "1", "2"), (60, 90, 170)
STAGES = {
    0: dict(zip(NAMES, (2.0, 1.0, 1.0), strict=True)),
    3: dict(zip(NAMES, (1.0, 1.0, 3.0), strict=True)),
    9: dict(zip(NAMES, (1.0, 4.0, 2.0), strict=True)),
}
ROWS, STOP = 16, 4  # a pass are 20 steps


class Checked(pl.Classifier):
    """Keeps each step's inputs, rows per domain, and how far its gradient is off."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer: Any = None
        self.inputs: list[Any] = []
        self.counts: list[list[int]] = []
        self.errors: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append(batch)
        self.inputs.append(batch[0].tolist())
        self.counts.append(torch.bincount(batch[2], minlength=3).tolist())
        return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Compare with the gradient of Σ π (mean loss), written out."""
        inputs, targets, domains = self.batches[-1]
        losses = F.cross_entropy(self.net(inputs), targets, reduction="none")
        means = torch.stack([losses[domains == i].mean() for i in range(3)])
        objective = torch.from_numpy(self.mixer.controller.weights.importance) @ means
        wanted = torch.autograd.grad(objective, list(self.net.parameters()))
        pairs = zip(self.net.parameters(), wanted, strict=True)
        self.errors.append(max(float((p.grad - g).abs().max()) for p, g in pairs))  # type: ignore[operator]


def noisy(rows: list[Any]) -> Any:
    """Collate, and add to the inputs what is drawn at random."""
    inputs, targets, domains = default_collate(rows)
    return inputs + 0.01 * torch.randn_like(inputs), targets, domains


def fitted(folder: Path, *, workers: int = 0, resume: bool = False, **options: Any) -> Checked:
    """The module, after one pass that saved after every fourth step."""
    defaults: dict[str, Any] = {"policy": "static", "seed": 3}
    mixer = AdaptMixCallback(**(defaults | options))
    module = Checked()
    module.mixer = mixer
    to = folder / "again" if resume else folder
    saves = ModelCheckpoint(to, filename="{step}", every_n_train_steps=STOP, save_top_k=-1)
    parts = []
    for number, size in enumerate(SIZES):
        inputs, targets, _ = runs.dataset(size, seed=number, scale=3.0**number).tensors
        parts.append(TensorDataset(inputs, targets, torch.full((size,), number)))
    loader: DataLoader[Any] = DataLoader(
        ConcatDataset(parts), ROWS, shuffle=True, num_workers=workers, collate_fn=noisy
    )
    trainer = pl.trainer(mixer, saves, max_epochs=1, enable_checkpointing=True)
    trainer.fit(module, loader, ckpt_path=folder / f"step={STOP}.ckpt" if resume else None)
    return module


@pytest.mark.parametrize("interpolate", ["step", "linear"])
def test_each_step_has_the_shares_and_the_gradient_of_its_stage(
    interpolate: str, tmp_path: Path
) -> None:
    schedule = Schedule(STAGES, interpolate=interpolate)
    whole = fitted(tmp_path, importance=schedule)
    assert len(whole.counts) == 20
    for step, (found, error) in enumerate(zip(whole.counts, whole.errors, strict=True)):
        assert np.abs(np.array(found) - ROWS * schedule.at(step)).max() < 1.0
        assert error < 1e-12
    resumed = fitted(tmp_path, importance=schedule, resume=True, workers=2)
    assert resumed.inputs == whole.inputs[STOP:]
    assert torch.equal(runs.parameters(resumed.net), runs.parameters(whole.net))


def test_shares_alone_follow_a_schedule(tmp_path: Path) -> None:
    schedule = Schedule(STAGES)
    equal = dict.fromkeys(NAMES, 1.0)
    module = fitted(tmp_path, sampling=schedule, importance=equal)
    for step, (found, error) in enumerate(zip(module.counts, module.errors, strict=True)):
        assert np.abs(np.array(found) - ROWS * schedule.at(step)).max() < 1.0
        assert error < 1e-12


def test_shares_go_by_a_power_of_the_sizes(tmp_path: Path) -> None:
    module = fitted(tmp_path, policy=policies.Temperature(0.5))
    powers = np.sqrt(SIZES)
    for found in module.counts:
        assert np.abs(np.array(found) - ROWS * powers / powers.sum()).max() < 1.0


def test_what_a_collator_draws_follows_from_the_seed(tmp_path: Path) -> None:
    whole = fitted(tmp_path).inputs
    assert fitted(tmp_path / "two", workers=2).inputs == whole
    # Without, workers draw from generators of their own.
    free = [fitted(tmp_path / f"free-{n}", workers=n, seed_rows=False).inputs for n in (0, 2)]
    assert free[0] != free[1]
