"""The Trainer follows schedules, fixed shares and the seed of rows, and goes on with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptmix import Schedule, policies
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.stepwise import causal, check

SIZES = dict(zip(hf.SIZES, (60, 90, 120), strict=True))
STAGES = {
    0: {"code": 2.0, "math": 1.0, "news": 1.0},
    2: {"code": 1.0, "math": 1.0, "news": 3.0},
    6: {"code": 1.0, "math": 4.0, "news": 2.0},
}
ROWS = 20


def counts(trainer: Any) -> list[list[int]]:
    """Rows of each domain, in the order of names, in every step."""
    steps = zip(*[iter(trainer.batches)] * 2, strict=True)
    firsts = (torch.cat([batch["input_ids"][:, 0] for batch in step]).tolist() for step in steps)
    places = [list(SIZES).index(name) + 1 for name in sorted(SIZES)]
    return [[first.count(place) for place in places] for first in firsts]


def trained(
    folder: Path,
    *,
    resume: str | None = None,
    workers: int = 0,
    collator: Any = hf.pad,
    **options: Any,
) -> Any:
    """The trainer, after ten steps of two micro-batches."""
    defaults: dict[str, Any] = {"policy": "static", "unit": "sample", "seed": 3}
    return hf.train(
        folder,
        AdaptMixCallback("source", **(defaults | options)),
        data=hf.rows(SIZES),
        collator=collator,
        per_device_train_batch_size=ROWS // 2,
        gradient_accumulation_steps=2,
        max_steps=10,
        dataloader_num_workers=workers,
        save_strategy="steps",
        save_steps=4,
        resume=None if resume is None else folder / resume,
    )


@pytest.mark.parametrize("interpolate", ["step", "linear"])
def test_each_step_has_the_gradient_of_the_objective_of_its_stage(
    interpolate: str, tmp_path: Path
) -> None:
    stages = {0: STAGES[0], 1: STAGES[2], 3: STAGES[6]}
    schedule = Schedule(stages, interpolate=interpolate)
    callback = check(tmp_path, causal, settings={"importance": schedule})
    names = callback.controller.mixture.domains
    importance = callback.controller.weights.importance
    np.testing.assert_allclose(importance, schedule.of(names, what="importance").at(3))


@pytest.mark.parametrize("what", ["importance", "sampling"])
def test_shares_follow_the_schedule_and_go_on_after_a_resume(what: str, tmp_path: Path) -> None:
    schedule = Schedule(STAGES, interpolate="linear").of(sorted(SIZES), what=what)
    options: dict[str, Any] = {what: schedule}
    whole = trained(tmp_path, **options)
    for step, found in enumerate(counts(whole)):
        assert np.abs(np.array(found) - ROWS * schedule.at(step)).max() < 1.0
    resumed = trained(tmp_path, resume="checkpoint-4", workers=2, **options)
    assert hf.trained_rows(resumed) == hf.trained_rows(whole)[8:]
    assert torch.equal(hf.parameters(whole.model), hf.parameters(resumed.model))


def test_shares_go_by_a_power_of_the_sizes(tmp_path: Path) -> None:
    found = counts(trained(tmp_path, policy=policies.Temperature(0.5)))
    powers = np.array([SIZES[name] ** 0.5 for name in sorted(SIZES)])
    for step in found:
        assert np.abs(np.array(step) - ROWS * powers / powers.sum()).max() < 1.0


def noisy(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad, and put words in others' places at random."""
    batch = hf.pad(features)
    ids = batch["input_ids"]
    masked = (torch.rand(ids.shape) < 0.3) & (torch.arange(ids.shape[1]) > 0)
    batch["input_ids"] = torch.where(masked, 3, ids)
    return batch


def test_what_a_collator_draws_follows_from_the_seed(tmp_path: Path) -> None:
    whole = hf.trained_rows(trained(tmp_path, collator=noisy))
    assert hf.trained_rows(trained(tmp_path / "two", collator=noisy, workers=2)) == whole
    resumed = trained(tmp_path, collator=noisy, resume="checkpoint-4")
    assert hf.trained_rows(resumed) == whole[8:]
    # Without, workers draw from generators of their own.
    options: dict[str, Any] = {"collator": noisy, "seed_rows": False}
    found = [hf.trained_rows(trained(tmp_path / "free", workers=n, **options)) for n in (0, 2)]
    assert found[0] != found[1]
