"""A Trainer's TensorBoard directory is a run record, from which the page is made."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from adaptmix.errors import LoggingWarning
from adaptmix.monitoring import page, read_runs
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.AdaptMixWarning")


@pytest.mark.parametrize("mode", ["adapt", "observe"])
def test_a_trainers_run_is_read_back(mode: str, tmp_path: Path) -> None:
    heldout = hf.rows({"code": 9, "news": 6, "math": 5}, seed=4)
    callback = AdaptMixCallback("source", mode=mode, update_every=1, lag=4)
    trainer = hf.train(
        tmp_path,
        callback,
        report_to=["tensorboard"],
        eval_strategy="epoch",
        trainer_options={"eval_dataset": heldout},
    )
    (record,) = read_runs([tmp_path])
    assert record.configuration == callback.controller.configuration
    assert record.observing == (mode == "observe")
    assert record.domains == ("code", "math", "news")
    proposed = callback.controller.proposed
    assert record.final("sampling_weight") == pytest.approx(proposed.sampling, rel=1e-6)
    assert [caution.kind for caution in record.cautions] == [
        caution.kind for caution in callback.controller.warnings
    ]
    # Held-out losses and their errors, written out: a ratio of sums over rows.
    model = trainer.model.eval()
    for name in record.domains:
        sums = []
        for row in heldout.filter(lambda row, name=name: row["source"] == name):
            ids = torch.tensor([row["input_ids"]])
            logits = model(input_ids=ids).logits[0, :-1].double()
            loss = F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            sums.append((loss, ids.shape[1] - 1))
        total, tokens = (sum(part) for part in zip(*sums, strict=True))
        mean = total / tokens
        squares = sum((loss - mean * size) ** 2 for loss, size in sums)
        error = (squares * len(sums) / (len(sums) - 1)) ** 0.5 / tokens
        assert record.of("heldout_loss")[name].last == pytest.approx(mean, rel=1e-4)
        assert record.of("heldout_loss_error")[name].last == pytest.approx(error, rel=1e-3)
    assert "heldout_loss_error" not in " ".join(trainer.state.log_history[-2])
    headline = "Nothing to compare with" if mode == "adapt" else "gradient"
    assert headline in page([record]).text


def test_texts_that_cannot_be_written_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = SummaryWriter.add_text

    def full(writer: SummaryWriter, tag: str, *args: Any, **kwargs: Any) -> None:
        if "adaptmix/" in tag:
            raise OSError("No space left on device")
        native(writer, tag, *args, **kwargs)

    monkeypatch.setattr(SummaryWriter, "add_text", full)
    callback = AdaptMixCallback("source", update_every=1, lag=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = hf.train(tmp_path, callback, report_to=["tensorboard"])
    told = [str(warning.message) for warning in caught if warning.category is LoggingWarning]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert callback.controller.completed == trainer.state.global_step > 0
