"""Lightning's internals are still where they are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from adaptmix_lightning import _internals as internals
from tests.integrations.adaptmix_lightning import pl

pytestmark = pl.FILTERS


def test_the_source_is_asked_for_the_loader_and_can_be_given_back() -> None:
    seen: list[Any] = []

    def replace(given: Any) -> Any:
        seen.append(given)
        return DataLoader(pl.dataset(), batch_size=73)

    trainer, module, given = pl.trainer(max_epochs=2), pl.Classifier(per_sample=False), pl.loader()
    own = trainer.fit_loop._data_source
    internals.take_over_source(trainer, replace)
    trainer.fit(module, given)
    assert seen == [given]
    assert len(module.rows) == 2
    internals.give_source_back(trainer)
    internals.give_source_back(trainer)  # nothing left to do
    assert trainer.fit_loop._data_source is own


def test_the_scale_of_mixed_precision() -> None:
    assert internals.backward_scale(pl.trainer()) == 1.0
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaler.scale(torch.ones(()))  # a scaler has its scale once it was used
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    assert internals.backward_scale(pl.trainer(plugins=[plugin])) == 512.0


def test_the_last_step() -> None:
    assert internals.max_steps(pl.trainer(max_steps=5)) == 5
    assert internals.max_steps(pl.trainer(max_epochs=5)) == -1


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("limit", [1.0, 0.5, 3])
def test_batches_of_an_epoch_are_those_lightning_would_train(drop_last: bool, limit: float) -> None:
    loader = DataLoader(pl.dataset(), batch_size=10, drop_last=drop_last)
    trainer = pl.trainer(max_epochs=1, limit_train_batches=limit)
    trainer.fit(pl.Classifier(per_sample=False), loader)
    assert trainer.num_training_batches == internals.epoch_batches(trainer, loader, limit)


def test_what_a_module_logs_goes_nowhere_for_a_while() -> None:
    trainer, module = pl.trainer(logger=CSVLogger("unused")), pl.Classifier()
    module.trainer = trainer
    own: Any = trainer.logger
    with internals.silent_loggers(module):
        logger: Any = module.logger
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.experiment.add_scalar("loss", 1.0)
    assert trainer.loggers == [own]
    assert not own.experiment.metrics
