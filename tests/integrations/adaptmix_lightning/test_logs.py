"""What a Trainer's loggers get, and what happens when they fail."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adaptmix.errors import LoggingWarning
from adaptmix_lightning import AdaptMixCallback
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_lightning.fitting import fit

pytestmark = pl.FILTERS


def test_tensorboard_shows_weights_by_domain(tmp_path: Path) -> None:
    mixer = AdaptMixCallback(list("a" * 40 + "b" * 24 + "c" * 9), update_every=2)
    logs = TensorBoardLogger(tmp_path)
    fit(mixer, max_epochs=3, logger=[logs, CSVLogger(tmp_path)], log_every_n_steps=3)
    events = EventAccumulator(logs.log_dir)
    events.Reload()
    tags = events.Tags()["scalars"]
    for quantity in ("sampling_weight", "loss_weight", "grad_std", "loss", "samples_seen"):
        for name in "abc":
            assert f"adaptmix/{quantity}/{name}" in tags
    scalars = events.Scalars("adaptmix/sampling_weight/c")
    assert [point.step for point in scalars] == [3, 6, 9, 12, 15, 18, 21]
    assert scalars[-1].value == pytest.approx(mixer.controller.weights.sampling[2])
    assert "custom_scalars__config__" in events.Tags()["tensors"]


class BrokenLogger(CSVLogger):
    """Its disk is full."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        raise OSError(28, "No space left on device")


def test_logs_that_fail_are_one_warning(tmp_path: Path) -> None:
    mixer = AdaptMixCallback(update_every=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fit(mixer, max_epochs=3, logger=BrokenLogger(tmp_path), log_every_n_steps=3)
    messages = [str(w.message) for w in caught if w.category is LoggingWarning]
    assert len(messages) == 1
    assert "No space left on device" in messages[0]
    assert trainer.global_step == mixer.controller.completed == 21
