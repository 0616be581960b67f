"""Streams under Lightning: the same rows with any number of workers, and after a stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from adaptmix import Mixture
from adaptmix_lightning import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_lightning.fitting import fit
from tests.integrations.adaptmix_lightning.test_parity import IMPORTANCE, WEIGHTS, Checked

pytestmark = pl.FILTERS

STEPS, STOP, ROWS = 9, 4, 12


class Streamed(IterableDataset[Any]):
    """The rows of a dataset, one after the other."""

    def __init__(self, rows: TensorDataset) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return (self.rows[place] for place in range(len(self.rows)))


def loader(workers: int = 0, **options: Any) -> DataLoader[Any]:
    parts = [runs.dataset(size, seed=i, scale=3.0**i) for i, size in enumerate(runs.SIZES)]
    streams = {"0": Streamed(parts[0]), "1": Streamed(parts[1]), "2": parts[2]}
    return DataLoader(Mixture(streams, **options), batch_size=ROWS, num_workers=workers)


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_step_is_the_objective_over_its_rows(accumulation: int) -> None:
    mixer = AdaptMixCallback(policy=WEIGHTS, lag=0, update_every=1)
    module = Checked(mixer)
    options: dict[str, Any] = {"max_epochs": None, "accumulate_grad_batches": accumulation}
    fit(mixer, module, loader(importance=IMPORTANCE), max_steps=STEPS, **options)
    assert len(module.errors) == STEPS
    assert max(module.errors) < 1e-10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_with_the_same_rows(workers: int, tmp_path: Path) -> None:
    def train(workers: int, resume: Path | None = None) -> Any:
        saves = ModelCheckpoint(
            tmp_path / str(resume is None), filename="{step}", every_n_train_steps=STOP
        )
        saves.save_top_k = -1
        module = pl.Classifier()
        mixer = AdaptMixCallback(update_every=2, lag=6)
        trainer = pl.trainer(
            mixer, saves, max_steps=STEPS, max_epochs=None, enable_checkpointing=True
        )
        trainer.fit(module, loader(workers), ckpt_path=resume)
        assert mixer.controller.completed == STEPS
        return module

    whole = train(0)
    resumed = train(workers, tmp_path / "True" / f"step={STOP}.ckpt")
    assert resumed.rows == whole.rows[STOP:]
    assert torch.equal(runs.parameters(resumed.net), runs.parameters(whole.net))


def test_epochs_are_those_of_the_sizes_that_are_given() -> None:
    mixer = AdaptMixCallback(policy="static")
    sizes = {"0": runs.SIZES[0], "1": runs.SIZES[1]}
    trainer, _ = fit(mixer, data=loader(sizes=sizes), max_epochs=2)
    assert trainer.global_step == 2 * -(-sum(runs.SIZES) // ROWS)


def test_streams_without_sizes_need_a_number_of_steps() -> None:
    with pytest.raises(TypeError, match="Say how long to train in steps"):
        fit(AdaptMixCallback(), data=loader(), max_epochs=2)
    mixer = AdaptMixCallback(policy="static")
    fit(mixer, data=loader(), max_epochs=2, limit_train_batches=3)
    assert mixer.controller.completed == 6
