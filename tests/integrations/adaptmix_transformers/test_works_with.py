"""What the callback works with: the rows of the table in the package's documentation.

Also tests ``adaptmix_transformers/_setup.py``.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.data import ConcatDataset, SequentialSampler
from transformers import Trainer

from adaptmix import Mixture, policies
from adaptmix.errors import FreshStartWarning
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.moving import adapting, moved
from tests.integrations.adaptmix_transformers.test_parity import lengths_of


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Settings that arguments leave in the environment, as for compilation, go with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"remove_unused_columns": False, "collator": hf.pad},
        {"max_steps": -1, "num_train_epochs": 0.7, "per_device_train_batch_size": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
# The name that every supported release has.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_trains(changes: dict[str, Any], tmp_path: Path) -> None:
    callback = adapting()
    trainer = hf.train(tmp_path, callback, **changes)
    assert trainer.state.global_step == callback.controller.completed >= 8
    assert moved(callback) > 0.005


def test_workers_may_be_spawned(tmp_path: Path) -> None:
    """What a worker is handed, in training and evaluation, can be pickled."""
    trainer = hf.make(tmp_path, adapting(), trainer_options={"eval_dataset": hf.rows(seed=1)})
    callback = next(cb for cb in trainer.callback_handler.callbacks if hasattr(cb, "running"))
    with callback.running():
        loaders = trainer.get_train_dataloader(), trainer.get_eval_dataloader()
    for loader in loaders:
        assert "Number" in type(loader.dataset).__name__
        collate, dataset = pickle.loads(pickle.dumps((loader.collate_fn, loader.dataset)))
        assert type(collate) is type(loader.collate_fn)
        assert len(dataset) == len(loader.dataset)


# Dynamo looks at every tensor's grad and expects to be warned; here warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.slow
@pytest.mark.skipif(
    transformers.__version__ < "5", reason="its masks do not compile with this torch"
)
def test_compiled_models_learn_what_others_do(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ]

    def one_layer() -> Any:
        return hf.llama(num_hidden_layers=1)

    plain, compiled = (
        hf.train(tmp_path, adapting(update_every=3), model=one_layer(), max_steps=5, **options)
        for options in settings
    )
    assert hf.trained_rows(plain) == hf.trained_rows(compiled)
    torch.testing.assert_close(
        hf.parameters(plain.model), hf.parameters(compiled.model), rtol=1e-3, atol=1e-4
    )


def test_domains_in_three_ways_are_the_same(tmp_path: Path) -> None:
    data = hf.rows()
    names = data["source"]
    parts = {name: data.filter(lambda row, name=name: row["source"] == name) for name in hf.SIZES}
    runs = [
        hf.train(tmp_path, adapting("source"), data=data),
        hf.train(tmp_path, adapting(names), data=data.remove_columns("source")),
    ]
    assert hf.trained_rows(runs[0]) == hf.trained_rows(runs[1])
    importance = {name: float(size) for name, size in hf.SIZES.items()}
    mixture = Mixture(parts, importance=importance)
    together: Any = ConcatDataset(list(parts.values()))
    for dataset in (mixture, together):
        callback = adapting(None)
        hf.train(tmp_path, callback, data=dataset)
        assert moved(callback) > 0.01
    assert callback.controller.mixture.domains == ("0", "1", "2")


def test_the_default_objective_is_the_trainers_own(tmp_path: Path) -> None:
    data = hf.rows()
    callback = AdaptMixCallback("source", policy="static")
    hf.train(tmp_path, callback, data=data)
    controller, lengths = callback.controller, lengths_of(data)
    assert controller.unit == "token"
    tokens = np.array([hf.SIZES[name] * lengths[name] for name in controller.mixture.domains])
    assert controller.mixture.importance == pytest.approx(tokens / tokens.sum())


class InOrder(hf.RecordingTrainer):
    """A Trainer without AdaptMix that takes rows as they come."""

    def _get_train_sampler(self, *args: Any) -> Any:
        rows: Any = self.train_dataset
        return SequentialSampler(rows)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_observing_changes_nothing_but_the_order_of_rows(
    accumulation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "max_steps": 6}
    callback = adapting(mode="observe", policy=hf.Moving(power=4.0))
    caplog.set_level(logging.INFO, logger="adaptmix")
    observed = hf.train(tmp_path, callback, **options)
    from datasets import Dataset

    rows = [
        {"input_ids": ids, "labels": ids}
        for batch in hf.trained_rows(observed)
        for ids in ([token for token in row if token] for row in batch)
    ]
    plain = hf.train(tmp_path, None, data=Dataset.from_list(rows), kind=InOrder, **options)
    assert hf.trained_rows(plain) == hf.trained_rows(observed)
    assert torch.equal(hf.parameters(plain.model), hf.parameters(observed.model))
    assert (
        np.abs(callback.controller.proposed.sampling - callback.controller.mixture.importance).max()
        > 0.01
    )
    assert "These shares make the gradient's variance" in caplog.text
    assert "Observed only" in caplog.text


@pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")
def test_noise_is_supplied_where_a_policy_asks_for_it(tmp_path: Path) -> None:
    callback = adapting(
        policy=policies.chain(policies.Joint(bias="ignored"))
    )  # noise as it is measured
    hf.train(tmp_path, callback, max_steps=12)
    assert np.isfinite(callback.controller.statistics.noise).all()
    assert np.abs(callback.controller.weights.loss - 1.0).max() > 1e-3


def test_held_out_rows_tell_the_noise_once_training_rows_repeat(tmp_path: Path) -> None:
    """No NoiseWarning, which would be an error here."""
    callback = adapting(policy=policies.Joint(bias="ignored"))
    hf.train(
        tmp_path,
        callback,
        max_steps=14,
        eval_strategy="steps",
        eval_steps=1,
        trainer_options={"eval_dataset": hf.rows(seed=6)},
    )
    statistics = callback.controller.statistics
    assert (statistics.seen > callback.controller.mixture.sizes).any()
    assert np.isfinite(statistics.noise).all()


def test_resuming_from_before_the_callback_was_attached(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    hf.train(tmp_path, None, **saving)
    callback = adapting()
    with pytest.warns(FreshStartWarning, match="was written without AdaptMix"):
        trainer = hf.train(tmp_path, callback, resume=tmp_path / "checkpoint-2", **saving)
    assert trainer.state.global_step == 8
    assert callback.controller.completed == 6
    assert len(trainer.batches) == 6
    again = hf.train(tmp_path, adapting(), resume=tmp_path / "checkpoint-6", **saving)
    assert hf.trained_rows(again) == hf.trained_rows(trainer)[4:]
    assert torch.equal(hf.parameters(again.model), hf.parameters(trainer.model))


@pytest.mark.parametrize("restore", [True, False])
def test_callback_states_are_left_to_the_trainer(restore: bool, tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    whole = hf.train(tmp_path, adapting(), **saving)
    again = hf.train(
        tmp_path,
        adapting(),
        resume=tmp_path / "checkpoint-4",
        restore_callback_states_from_checkpoint=restore,
        **saving,
    )
    assert torch.equal(hf.parameters(again.model), hf.parameters(whole.model))


def test_skipping_is_not_needed_to_go_on_with_the_right_rows(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole = hf.train(tmp_path, adapting(), **saving)
    again = hf.train(
        tmp_path, adapting(), resume=tmp_path / "checkpoint-3", ignore_data_skip=True, **saving
    )
    assert hf.trained_rows(again) == hf.trained_rows(whole)[3:]


def test_another_search_trial_starts_anew(tmp_path: Path) -> None:
    callback = adapting()
    trainer = hf.RecordingTrainer(
        model_init=lambda: hf.llama(),
        args=hf.arguments(tmp_path),
        train_dataset=hf.rows(),
        data_collator=hf.pad,
        callbacks=[callback],
    )
    trainer.train()
    first, weights = hf.trained_rows(trainer), callback.controller.weights.sampling
    parameters = hf.parameters(trainer.model)
    trainer.batches.clear()
    trainer.train()
    assert hf.trained_rows(trainer) == first
    assert callback.controller.weights.sampling.tolist() == weights.tolist()
    assert torch.equal(hf.parameters(trainer.model), parameters)


class TooLarge(hf.RecordingTrainer):
    """Runs out of memory with more than twelve rows."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Fail as CUDA does."""
        if len(inputs["input_ids"]) > 12:
            raise RuntimeError("CUDA out of memory.")
        return super().training_step(model, inputs, *args, **kwargs)


def test_the_batch_size_that_fits_is_found(tmp_path: Path) -> None:
    callback = adapting()
    options: dict[str, Any] = {"auto_find_batch_size": True, "per_device_train_batch_size": 16}
    trainer = hf.train(tmp_path, callback, kind=TooLarge, **options)
    assert {len(rows) for rows in hf.trained_rows(trainer)} <= {8, 12}
    assert callback.controller.completed == trainer.state.global_step == 8
    assert moved(callback) > 0


def test_a_removed_callback_leaves_the_trainer_alone(tmp_path: Path) -> None:
    callback = adapting()
    trainer = hf.make(tmp_path, callback)
    trainer.remove_callback(callback)
    trainer.train()
    plain = hf.train(tmp_path, None)
    assert hf.trained_rows(trainer) == hf.trained_rows(plain)
    assert torch.equal(hf.parameters(trainer.model), hf.parameters(plain.model))


def test_a_callback_that_is_added_later_says_what_it_needs(tmp_path: Path) -> None:
    trainer: Trainer = hf.make(tmp_path, None)
    callback = adapting()
    trainer.add_callback(callback)
    with pytest.raises(RuntimeError, match=r"call callback\.attach\(trainer\)"):
        trainer.train()
    callback.attach(trainer)
    trainer.train()
    assert moved(callback) > 0.01
    second = adapting()
    trainer.add_callback(second)
    with pytest.raises(ValueError, match="must have one AdaptMixCallback"):
        second.attach(trainer)
