"""Observing refuses nothing, changes nothing and says what it cannot know."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from adaptmix.errors import MissingStatisticError, MissingStatisticWarning
from tests.integrations.adaptmix_transformers.losses import (
    MicroBatch,
    compare,
    stack,
)
from tests.integrations.adaptmix_transformers.overrides import (
    contrastive,
    cross_entropy,
    focal,
    hardest,
    logits_of,
    mean_of,
    overridden,
    pairwise_hinge,
    self_normalised,
)


# Embeddings of positions are not seen; what is unknown cannot be gone by.
@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
@pytest.mark.filterwarnings("ignore:Nothing is proposed")
@pytest.mark.parametrize(
    ("loss", "known"),
    [
        *((loss, False) for loss in (contrastive, pairwise_hinge, hardest, self_normalised)),
        (lambda z, y, _: focal(z, y).mean(), True),
    ],
)
def test_observing_never_refuses_and_changes_nothing(
    loss: Any, known: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def whole(model: Any, batch: MicroBatch) -> Tensor:
        result: Tensor = loss(logits_of(model, batch), batch.inputs["labels"], model)
        return result

    errors, callback = compare(
        tmp_path,
        whole,
        kind=overridden(loss),
        settings={"mode": "observe", "policy": "variance_aware"},
    )
    assert np.nanmax(errors) < 1e-12  # of steps that have a gradient
    # A row's gradient is that of its own loss; where there is none, nothing is made up.
    assert np.isfinite(callback.controller.statistics.grad_var).all() == known
    assert caplog.text.count("Gradients are not measured in this run: ") == (not known)


def test_unknown_losses_are_said_once_and_reported_as_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="adaptmix")
    _, callback = compare(
        tmp_path, mean_of(focal), kind=overridden(lambda z, y, _: focal(z, y).mean())
    )
    assert np.isnan(callback.controller.statistics.loss_mean).all()
    assert caplog.text.count("Rows' losses are not known") == 1
    with pytest.raises(MissingStatisticError, match=r"policy='joint' needs noise of rows"):
        compare(
            tmp_path,
            mean_of(focal),
            kind=overridden(lambda z, y, _: focal(z, y).mean()),
            settings={"policy": "joint"},
        )


def test_observing_rows_that_a_collator_merges(tmp_path: Path) -> None:
    def merge(features: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {name: value[:-1] for name, value in stack(features).items()}

    def whole(model: Any, batch: MicroBatch) -> Tensor:
        return cross_entropy(logits_of(model, batch), batch.inputs["labels"]).mean()

    with pytest.warns(MissingStatisticWarning, match="Nothing is proposed"):
        errors, _ = compare(
            tmp_path,
            whole,
            collator=merge,
            settings={"mode": "observe", "policy": "variance_aware"},
        )
    assert max(errors) < 1e-12
