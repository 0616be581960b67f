"""fp16 with a scaled loss: the scale changes nothing, and skipped steps are only skipped.

accelerate leaves fp16 and its scaler out on CPU. Here both are switched on by hand: its own forward
wrapper and optimizer wrapper run, with torch's ``GradScaler("cpu")``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from adaptmix.errors import NonFiniteWarning
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_parity import (
    WEIGHTS,
    lengths_of,
    objective,
    relative_error,
)

ACCUMULATION = 2


class Watch(TrainerCallback):
    """Sees each step before and after the optimizer, and whether it was skipped."""

    def __init__(self, callback: AdaptMixCallback) -> None:
        self.callback = callback
        self.trainer: Any = None
        self.skipped: list[bool] = []
        self.errors: list[float] = []
        self.before = torch.empty(0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare the gradient with that of the objective."""
        model, accelerator = kwargs["model"], self.trainer.accelerator
        scaler = accelerator.scaler
        # accelerate has taken the scale off, to clip, where it knows of fp16.
        scaled = scaler is not None and not accelerator.native_amp
        self.before = hf.parameters(model)
        batches = self.trainer.batches[-ACCUMULATION:]
        lengths = lengths_of(hf.rows())
        wanted: Tensor = objective(self.callback.controller, model, batches, lengths)
        gradients = torch.autograd.grad(wanted, list(model.parameters()))
        expected = torch.cat([gradient.flatten() for gradient in gradients])
        got = hf.gradient(model) / (scaler.get_scale() if scaled else 1.0)
        self.errors.append(relative_error(got, expected))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note whether parameters moved."""
        self.skipped.append(torch.equal(self.before, hf.parameters(kwargs["model"])))


def train(
    folder: Path,
    callback: AdaptMixCallback,
    scaler: torch.amp.GradScaler | None,
    *,
    half: bool,
    **changes: Any,
) -> Watch:
    """Train twelve steps with a scaler, the forward pass in fp16 if ``half``."""
    watch = Watch(callback)
    options: dict[str, Any] = {
        "fp16": half,
        "per_device_train_batch_size": 10,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_grad_norm": 0.0,
        "max_steps": 12,
    }
    trainer = watch.trainer = hf.make(folder, callback, **(options | changes))
    trainer.accelerator.scaler = scaler
    trainer.accelerator.native_amp = half
    trainer.add_callback(watch)
    trainer.train()
    return watch


def adapting() -> AdaptMixCallback:
    """Weights that move from the first updates on."""
    return AdaptMixCallback("source", unit="sample", policy=hf.Moving(), update_every=1, lag=2)


def test_the_scale_changes_nothing(tmp_path: Path) -> None:
    """A power of two, so that every gradient has the same digits."""
    runs = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        callback = adapting()
        runs.append((train(tmp_path, callback, scaler, half=False), callback.controller))
    (plain, before), (scaled, after) = runs
    assert torch.equal(hf.parameters(plain.trainer.model), hf.parameters(scaled.trainer.model))
    assert hf.trained_rows(plain.trainer) == hf.trained_rows(scaled.trainer)
    np.testing.assert_array_equal(after.weights.sampling, before.weights.sampling)
    np.testing.assert_array_equal(after.statistics.grad_var, before.statistics.grad_var)
    assert np.abs(after.weights.sampling - after.mixture.importance).max() > 0.01


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")  # tiny data
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler:UserWarning")
def test_a_skipped_step_is_only_skipped(tmp_path: Path) -> None:
    """The first scale overflows float32 and the next does not."""
    callback = AdaptMixCallback("source", unit="sample", policy=WEIGHTS, lag=0, update_every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-110)
    watch = train(tmp_path, callback, scaler, half=False)
    assert watch.skipped == [True] + [False] * 11
    assert max(watch.errors[1:]) < 1e-5
    controller = callback.controller
    assert controller.completed == watch.trainer.state.global_step == 12
    plain = AdaptMixCallback("source", unit="sample", policy=WEIGHTS, lag=0, update_every=1)
    unscaled = train(tmp_path, plain, None, half=False)
    assert hf.trained_rows(watch.trainer) == hf.trained_rows(unscaled.trainer)
    assert controller.statistics.seen.tolist() == plain.controller.statistics.seen.tolist()


# The first observed steps overflow, and torch takes a skipped step for a forgotten one.
@pytest.mark.filterwarnings("ignore::adaptmix.errors.TooFewRowsWarning")
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler:UserWarning")
def test_half_precision_trains_through_its_overflows(tmp_path: Path) -> None:
    callback = adapting()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    with pytest.warns(NonFiniteWarning, match="left out of the statistics"):
        watch = train(tmp_path, callback, scaler, half=True, max_grad_norm=1e9)
    controller = callback.controller
    skipped = sum(watch.skipped)
    errors = [error for error, was in zip(watch.errors, watch.skipped, strict=True) if not was]
    assert max(errors) < 0.01, errors
    assert 0 < skipped < 9
    assert scaler.get_scale() == 2.0 ** (22 - skipped)
    assert watch.trainer.state.global_step == controller.completed == 12
    assert len(watch.trainer.batches) == 12 * ACCUMULATION
    weights = controller.weights.sampling
    assert np.isfinite(weights).all()
    assert np.isfinite(controller.statistics.grad_var).all()
    assert np.abs(weights - controller.mixture.importance).max() > 0.005
