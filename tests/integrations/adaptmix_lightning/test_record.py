"""What a Lightning Trainer's loggers keep: a run record, and columns that group well."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from adaptmix.errors import LoggingWarning
from adaptmix.monitoring import page, read_runs
from adaptmix_lightning import AdaptMixCallback
from tests.integrations.adaptmix_lightning import pl

pytestmark = pl.FILTERS


@pytest.mark.parametrize("mode", ["adapt", "observe"])
def test_a_trainers_run_is_read_back(mode: str, tmp_path: Path) -> None:
    mixer = AdaptMixCallback(list("a" * 40 + "b" * 24 + "c" * 9), update_every=2, mode=mode)
    logs = TensorBoardLogger(tmp_path / "board")
    table = CSVLogger(tmp_path / "table")
    trainer = pl.trainer(mixer, max_epochs=3, logger=[logs, table], log_every_n_steps=3)
    trainer.fit(pl.Classifier(), pl.loader())
    (record,) = read_runs([tmp_path / "board"])
    controller = mixer.controller
    assert record.configuration == controller.configuration
    assert record.observing == (mode == "observe")
    assert record.final("sampling_weight") == pytest.approx(controller.proposed.sampling, rel=1e-6)
    assert record.steps == 21
    own = "proposed_" if mode == "observe" else ""
    part = EventAccumulator(str(Path(logs.log_dir) / "c")).Reload()
    shown = part.Scalars(f"adaptmix/{own}sampling_weight")
    assert [event.step for event in shown] == [3, 6, 9, 12, 15, 18, 21]
    assert page([record]).html.startswith("<!DOCTYPE html>")
    with (Path(table.log_dir) / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    shares = [float(last[f"adaptmix/{own}sampling_weight/{name}"]) for name in "abc"]
    assert shares == pytest.approx(controller.proposed.sampling.tolist())


def test_texts_that_cannot_be_written_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = SummaryWriter.add_text

    def full(writer: SummaryWriter, tag: str, *args: Any, **kwargs: Any) -> None:
        if "adaptmix/" in tag:
            raise OSError("No space left on device")
        native(writer, tag, *args, **kwargs)

    monkeypatch.setattr(SummaryWriter, "add_text", full)
    mixer = AdaptMixCallback(list("a" * 40 + "b" * 24 + "c" * 9), update_every=2)
    trainer = pl.trainer(mixer, max_epochs=3, logger=[TensorBoardLogger(tmp_path)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(pl.Classifier(), pl.loader())
    told = [str(warning.message) for warning in caught if warning.category is LoggingWarning]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert mixer.controller.completed == 21
