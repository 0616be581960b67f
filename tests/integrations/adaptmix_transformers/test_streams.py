"""Streams under the Trainer and TRL: the same gradients, rows and steps, after a stop too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset

from adaptmix import Mixture
from adaptmix_transformers import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_parity import WEIGHTS, Check, lengths_of

STEPS, STOP = 6, 4


def mixture(**options: Any) -> Mixture:
    """Two streams and a dataset."""
    data = hf.rows()
    parts = {}
    for name in hf.SIZES:
        part = data.filter(lambda row, name=name: row["source"] == name).remove_columns("source")
        parts[name] = part if name == "math" else part.to_iterable_dataset(num_shards=2)
    return Mixture(parts, **options)


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_every_step_is_the_objective_over_its_rows(unit: str, tmp_path: Path) -> None:
    callback = AdaptMixCallback(policy=WEIGHTS, unit=unit)
    check = Check(callback, lengths_of(hf.rows()), list)
    options: dict[str, Any] = {
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "max_grad_norm": 0.0,
    }
    trainer = hf.make(tmp_path, callback, data=mixture(), **options)
    check.trainer = trainer
    trainer.add_callback(check)
    trainer.train()
    assert len(check.errors) == STEPS
    assert max(check.errors) < 1e-4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_with_the_same_rows(workers: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": STOP,
    }
    whole = hf.train(tmp_path, AdaptMixCallback(), data=mixture(), **options)
    checkpoint = tmp_path / f"checkpoint-{STOP}"
    options["dataloader_num_workers"] = workers
    resumed = hf.train(tmp_path, AdaptMixCallback(), data=mixture(), resume=checkpoint, **options)
    assert hf.trained_rows(resumed) == hf.trained_rows(whole)[2 * STOP :]
    assert torch.equal(runs.parameters(resumed.model), runs.parameters(whole.model))


def test_epochs_are_those_of_the_sizes_that_are_given(tmp_path: Path) -> None:
    data = mixture(sizes={"code": 40, "news": 24})
    callback = AdaptMixCallback()
    trainer = hf.train(tmp_path, callback, data=data, max_steps=-1, num_train_epochs=2)
    assert trainer.state.global_step == 2 * 10


def test_streams_without_sizes_need_a_number_of_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        hf.train(tmp_path, AdaptMixCallback(), data=mixture(), max_steps=-1)


def test_one_stream_of_several_domains_is_refused(tmp_path: Path) -> None:
    data: IterableDataset = hf.rows().to_iterable_dataset()
    with pytest.raises(TypeError, match="Use Mixture"):
        hf.train(tmp_path, AdaptMixCallback("source"), data=data)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_trl_trains_on_a_mixture_in_the_place_of_its_dataset(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from tests.integrations.adaptmix_transformers.test_trl import config, words

    callback = AdaptMixCallback(policy=WEIGHTS)
    data = mixture()
    trainer = trl.SFTTrainer(
        model=hf.llama(),
        args=config(trl.SFTConfig, tmp_path),
        train_dataset=data.streams[0],
        processing_class=words(),
        callbacks=[callback],
    )
    trainer.train_dataset = data
    check = Check(callback, lengths_of(hf.rows()), list)
    rows: list[Any] = []
    own = trainer.training_step

    def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(dict(inputs))
        return own(model, inputs, *args, **kwargs)

    trainer.training_step, trainer.batches = training_step, rows
    check.trainer = trainer
    trainer.add_callback(check)
    trainer.train()
    assert len(check.errors) == 4
    assert max(check.errors) < 1e-4
