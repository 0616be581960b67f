"""One callback does all of it: sampling, weighting, logging, stopping and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptmix_transformers import AdaptMixCallback

from adaptmix import policies
from tests.integrations.adaptmix_transformers import hf


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("epochs", [1, 3])
def test_stop_and_resume_is_bit_identical(
    workers: int, accumulation: int, epochs: int, tmp_path: Path
) -> None:
    # 80 rows in batches of 6 are 14 micro-batches: with accumulation 4 an epoch does not divide.
    size = 80 if epochs == 3 else 240
    sizes = {name: number * size // 80 for name, number in hf.SIZES.items()}
    steps = {"num_train_epochs": epochs, "max_steps": -1, "save_strategy": "steps"}
    options: dict[str, Any] = {
        **steps,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "save_steps": 7,
        "data": hf.rows(sizes),
    }
    made = [
        AdaptMixCallback("source", policy=policies.VarianceAware(), update_every=2, lag=4)
        for _ in range(2)
    ]
    whole = hf.train(tmp_path / "whole", made[0], **options)
    resumed = hf.train(
        tmp_path / "resumed",
        made[1],
        model=hf.llama(seed=9),
        resume=tmp_path / "whole" / "checkpoint-7",
        **options,
    )
    assert whole.state.global_step == resumed.state.global_step
    assert whole.state.global_step == epochs * -(-(size // 6 + (size % 6 > 0)) // accumulation)
    again = hf.trained_rows(resumed)
    assert hf.trained_rows(whole)[7 * accumulation :] == again
    assert len(again) == (whole.state.global_step - 7) * accumulation
    assert torch.equal(hf.parameters(whole.model), hf.parameters(resumed.model))
    assert resumed.state.epoch == whole.state.epoch == epochs
    weights = [callback.controller.weights.sampling for callback in made]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.abs(weights[0] - made[0].controller.mixture.importance).max() > 0.005
