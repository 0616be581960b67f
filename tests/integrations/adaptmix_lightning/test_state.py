"""Checkpoints of a Trainer hold the callback's state, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from adaptmix.errors import FreshStartWarning, StateError
from adaptmix_lightning import AdaptMixCallback
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_lightning.fitting import fit

pytestmark = pl.FILTERS


def test_checkpoints_load_without_running_code(tmp_path: Path) -> None:
    trainer, _ = fit(AdaptMixCallback(update_every=2))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["callbacks"]["AdaptMixCallback"]["plan"]["completed"] == 7


def test_a_checkpoint_whose_parts_do_not_belong_together(tmp_path: Path) -> None:
    trainer, _ = fit(AdaptMixCallback(), limit_train_batches=3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"completed": 3}]
    saved["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [{"completed": 2}]
    torch.save(saved, tmp_path / "a.ckpt")
    again = pl.trainer(AdaptMixCallback(), max_steps=6)
    with pytest.raises(StateError, match="must be of step 2"):
        again.fit(pl.Classifier(), pl.loader(), ckpt_path=tmp_path / "a.ckpt")


def test_a_checkpoint_written_without_adaptmix(tmp_path: Path) -> None:
    plain = pl.trainer(max_epochs=1)
    plain.fit(pl.Classifier(per_sample=False), pl.loader())
    plain.save_checkpoint(tmp_path / "a.ckpt")
    mixer = AdaptMixCallback()
    trainer = pl.trainer(mixer, max_epochs=2)
    with pytest.warns(FreshStartWarning, match="without a state"):
        trainer.fit(pl.Classifier(), pl.loader(), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == 14
    assert mixer.controller.completed == 7


class Interrupted(pl.Classifier):
    """Saves between the batches of a step, as a timer would."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "middle.ckpt")


def test_a_checkpoint_of_an_unfinished_step_is_written_but_not_gone_on_from(tmp_path: Path) -> None:
    options = {"default_root_dir": tmp_path, "accumulate_grad_batches": 4}
    fit(AdaptMixCallback(), Interrupted(), **options)
    trainer = pl.trainer(AdaptMixCallback(), max_epochs=2, **options)
    with pytest.raises(StateError, match="middle of step 1"):
        trainer.fit(pl.Classifier(), pl.loader(), ckpt_path=tmp_path / "middle.ckpt")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer, _ = fit(AdaptMixCallback())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for mixer, batch_size, what in (
        (AdaptMixCallback(seed=3), 12, "seed"),
        (AdaptMixCallback(), 6, "batch_size"),
    ):
        again = pl.trainer(mixer, max_epochs=2)
        with pytest.raises(StateError, match=what):
            again.fit(pl.Classifier(), pl.loader(batch_size), ckpt_path=tmp_path / "a.ckpt")


def test_the_module_is_saved_after_the_weights_were_updated(tmp_path: Path) -> None:
    # ModelCheckpoint comes last, wherever it stands in the list.
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    mixer = AdaptMixCallback(update_every=2)
    trainer = pl.trainer(saves, mixer, max_epochs=1, enable_checkpointing=True)
    trainer.fit(pl.Classifier(), pl.loader())
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    assert saved["callbacks"]["AdaptMixCallback"]["plan"]["completed"] == 4
