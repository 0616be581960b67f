"""A Trainer whose domains run out stops where the plan does, and within its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf

SIZES = dict(zip(hf.SIZES, (40, 60, 100), strict=True))


def trained(folder: Path, *, max_steps: int, workers: int = 0, **options: Any) -> tuple[Any, Any]:
    """The trainer, and how many rows of each domain were drawn."""
    callback = AdaptMixCallback(
        "source", policy="static", importance=dict.fromkeys(SIZES, 1.0), **options
    )
    trainer = hf.train(
        folder,
        callback,
        data=hf.rows(SIZES),
        max_steps=max_steps,
        gradient_accumulation_steps=2,
        dataloader_num_workers=workers,
    )
    return trainer, callback.controller._plan.state_dict()["drawn"]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainer_stops_when_the_first_domain_is_used_up(workers: int, tmp_path: Path) -> None:
    trainer, drawn = trained(tmp_path, max_steps=50, workers=workers, when_exhausted="stop_first")
    assert drawn.sum() == 16 * trainer.state.global_step
    # Rows of code have the fewest tokens, so that most are drawn of it; the next step has ten more.
    assert 30 < drawn[0] <= 40
    assert (drawn <= list(SIZES.values())).all()


def test_limits_are_spread_over_the_run(tmp_path: Path) -> None:
    trainer, drawn = trained(tmp_path, max_steps=15, max_epochs={next(iter(SIZES)): 1})
    assert trainer.state.global_step == 15
    assert drawn[0] == 40
    assert drawn.sum() == 15 * 16
