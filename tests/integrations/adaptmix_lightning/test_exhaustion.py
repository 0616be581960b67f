"""A Lightning Trainer whose domains run out stops where the plan does, and within its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix_lightning import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_lightning import pl

pytestmark = pl.FILTERS


def fitted(*, workers: int = 0, **options: Any) -> tuple[Any, Any]:
    """The trainer, and how many rows of each domain were drawn."""
    mixer = AdaptMixCallback(policy="static", importance={"0": 1, "1": 1, "2": 1}, **options)
    module = pl.Classifier()
    trainer = pl.trainer(mixer, max_epochs=3)
    trainer.fit(module, pl.loader(12, num_workers=workers))
    rows = np.concatenate(module.rows)
    assert rows.size == 12 * trainer.global_step
    return trainer, mixer.controller._plan.state_dict()["drawn"]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainer_stops_when_the_first_domain_is_used_up(workers: int) -> None:
    trainer, drawn = fitted(workers=workers, when_exhausted="stop_first")
    assert trainer.global_step == 3 * min(runs.SIZES) // 12
    assert (drawn <= runs.SIZES).all()


def test_limits_are_spread_over_the_run() -> None:
    trainer, drawn = fitted(max_epochs={"2": 2})
    assert trainer.global_step == 21
    assert drawn[2] == 2 * runs.SIZES[2]
    assert abs(drawn[0] - drawn[1]) < 12
