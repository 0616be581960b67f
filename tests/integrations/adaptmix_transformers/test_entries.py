"""The trainer has its own methods back whenever it neither trains nor evaluates.

Also tests ``adaptmix_transformers/_mixin.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from adaptmix_transformers import AdaptMixCallback, AdaptMixMixin
from tests.integrations.adaptmix_transformers import hf

ENTRIES = {"train", "evaluate", "predict"}


class Failing(hf.RecordingTrainer):
    """Stops with an error in its second step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step:
            raise RuntimeError("out of memory")
        return super().training_step(*args, **kwargs)


def replaced(trainer: Any) -> set[str]:
    """The methods of a trainer's class that the trainer has others in the place of."""
    return {name for name in vars(trainer) if callable(getattr(type(trainer), name, None))}


def test_methods_are_given_back_after_training(tmp_path: Path) -> None:
    callback = AdaptMixCallback("source")
    trainer = hf.make(tmp_path, callback, max_steps=2)
    before = {name: value for name, value in vars(trainer).items() if name in replaced(trainer)}
    assert set(before) == ENTRIES
    trainer.train()
    assert {name: vars(trainer)[name] for name in replaced(trainer)} == before
    assert not any(module._forward_hooks for module in trainer.model.modules())
    # It can train again, and a loader is its own in between.
    assert "adaptmix_number" not in next(iter(trainer.get_train_dataloader()))
    trainer.train()
    assert callback.controller.completed == 2


def test_methods_are_given_back_after_an_exception(tmp_path: Path) -> None:
    trainer = hf.make(tmp_path, AdaptMixCallback("source"), kind=Failing)
    loss_function = trainer.model.loss_function
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert replaced(trainer) == ENTRIES
    assert trainer.model.loss_function is loss_function
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_losses_by_domain_are_told_after_training_too(tmp_path: Path) -> None:
    options = {"eval_dataset": hf.rows({"code": 5, "news": 4, "math": 4}, seed=1)}
    trainer = hf.train(tmp_path, AdaptMixCallback("source"), trainer_options=options, max_steps=2)
    told = trainer.evaluate()
    assert {f"eval_loss_{name}" for name in hf.SIZES} < set(told)
    assert replaced(trainer) == ENTRIES


def test_a_callback_of_another_fold_says_to_make_one(tmp_path: Path) -> None:
    callback = AdaptMixCallback("source")
    hf.train(tmp_path / "first", callback, max_steps=1)
    with pytest.raises(ValueError, match=r"this one has another\. Make a new AdaptMixCallback for"):
        hf.make(tmp_path / "second", callback)


class Mine(AdaptMixMixin, hf.RecordingTrainer):
    """A trainer of one's own, with a loss of its own."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return (2.0 * loss[0], loss[1]) if isinstance(loss, tuple) else 2.0 * loss


def of_mixin(folder: Path, adaptmix: Any, **options: Any) -> Any:
    return hf.make(folder, None, kind=Mine, trainer_options={"adaptmix": adaptmix}, **options)


def test_a_mixin_trains_as_the_callback_does(tmp_path: Path) -> None:
    class Doubled(hf.RecordingTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return (2.0 * loss[0], loss[1]) if isinstance(loss, tuple) else 2.0 * loss

    def moving() -> AdaptMixCallback:
        return AdaptMixCallback("source", policy=hf.Moving(), update_every=1, lag=1)

    callbacks = [moving(), moving()]
    mixed = of_mixin(tmp_path / "a", callbacks[0])
    mixed.train()
    called = hf.train(tmp_path / "b", callbacks[1], kind=Doubled)
    assert replaced(mixed) == set()
    assert hf.trained_rows(mixed) == hf.trained_rows(called)
    assert torch.equal(hf.parameters(mixed.model), hf.parameters(called.model))
    shares = [callback.controller.weights.sampling for callback in callbacks]
    assert shares[0].tolist() == shares[1].tolist()
    assert shares[0].tolist() != callbacks[0].controller.mixture.importance.tolist()


def test_a_mixin_without_a_callback_is_the_trainer(tmp_path: Path) -> None:
    mixed = of_mixin(tmp_path, None, max_steps=1)
    mixed.train()
    assert mixed.adaptmix is None
    assert "source" not in mixed.batches[0]


def test_a_mixin_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Write class Late\(AdaptMixMixin, Trainer\)"):

        class Late(Trainer, AdaptMixMixin):
            pass

    with pytest.raises(TypeError, match="adaptmix must be an AdaptMixCallback; got str"):
        of_mixin(tmp_path, "source")
