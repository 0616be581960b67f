"""An observed fit refuses no loss: what cannot be told of it is unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_lightning.test_head import Headed, Tags, centred

pytestmark = [*pl.FILTERS, pytest.mark.filterwarnings("ignore::adaptmix.errors.AdaptMixWarning")]


class Sorts(pl.Classifier):
    """Puts rows into another order before the module sees them."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        order = batch[0][:, 0].argsort()
        return super().training_step([part[order] for part in batch], batch_idx)


def some(rows: torch.Tensor) -> torch.Tensor:
    """Other numbers of targets in each row."""
    return torch.arange(4) >= 1 + (rows % 3).unsqueeze(1)


@pytest.mark.parametrize(
    ("head", "module", "why"),
    [
        ("net.2", lambda: Headed(lambda _, z, y: centred(z, y)), "a sum of one term per row"),
        ("net.0", lambda: Headed(lambda _, z, y: F.cross_entropy(z, y)), "must be the last module"),
        ("head", lambda: Tags(some), "mean of one term per row"),
        ("net", lambda: Sorts(per_sample=False), "must keep rows in the order of the batch"),
        (None, lambda: Sorts(), "must keep rows in the order of the batch"),
    ],
)
def test_losses_that_are_refused_otherwise_are_trained_as_they_are(
    head: str | None, module: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    observer = AdaptMixCallback(head=head, mode="observe", update_every=2)
    observed = module()
    pl.trainer(observer, max_epochs=2).fit(observed, pl.loader())
    assert observer.controller.completed == 14
    assert why in caplog.text
    assert caplog.text.count("Nothing is measured of this loss") == 1
    assert np.isnan(observer.controller.statistics.grad_var).all()


def test_an_observed_head_is_measured_where_the_loss_allows() -> None:
    observer = AdaptMixCallback(head="net", mode="observe", update_every=2)
    pl.trainer(observer, max_epochs=2).fit(pl.Classifier(per_sample=False), pl.loader())
    assert np.isfinite(observer.controller.statistics.grad_var).all()


def test_a_hinge_between_rows_that_begins_in_mid_run_is_refused() -> None:
    def late(module: Any, logits: Any, targets: Any) -> Any:
        loss = F.cross_entropy(logits, targets)
        return loss if module.global_step < 8 else loss + F.relu(logits.mean() + 1.0)

    mixer = AdaptMixCallback(head="net.2", policy="static", update_every=4)
    with pytest.raises(ObjectiveError, match="Relu of a value that depends on several rows"):
        pl.trainer(mixer, max_epochs=4).fit(Headed(late), pl.loader())
    assert 8 <= mixer.controller.completed < 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "variance-aware"}, "policy must be"),
        ({"mode": "watch"}, "mode must be"),
        ({"lag": -1}, "lag must be"),
        ({"unit": "batch"}, "unit must be"),
        ({"accumulation": 0}, "accumulation must be"),
        ({"importance": {"a": 1.0}, "unit": "token", "tokens_per_row": {"b": 2.0}}, "must name"),
    ],
)
def test_wrong_options_fail_where_they_are_written(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        AdaptMixCallback(**options)
