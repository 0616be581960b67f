"""What does not work says so, by its name and with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from adaptmix_lightning import _internals as internals
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_lightning.refusing import refused

pytestmark = pl.FILTERS


# Settings.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("overfit_batches", {"overfit_batches": 2}),
        ("reload_dataloaders_every_n_epochs", {"reload_dataloaders_every_n_epochs": 1}),
    ],
)
def test_trainer_options(name: str, options: dict[str, Any]) -> None:
    refused(f"does not work with {name}", **options)


@pytest.mark.parametrize(
    "callback",
    [GradientAccumulationScheduler({0: 1, 1: 2}), StochasticWeightAveraging(swa_lrs=0.1)],
)
def test_callbacks(callback: Any) -> None:
    refused(f"does not work with {type(callback).__name__}", None, None, callback)


def test_sharded_strategies() -> None:
    trainer, module = pl.trainer(), pl.Classifier()
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(ObjectiveError, match=r"strategy FSDPStrategy. Use one device"):
        internals.refuse_unsupported(trainer, module)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
def test_dataloader_iter() -> None:
    class Pulls(pl.Classifier):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            return super().training_step(next(dataloader_iter)[0], 0)

    refused("dataloader_iter", Pulls())


def test_compiled_modules() -> None:
    refused("compiled LightningModule", torch.compile(pl.Classifier(), backend="eager"))


class Optimizers(pl.Classifier):
    """As many optimizers as asked for, stepped by hand."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.automatic_optimization = number, False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(self.number)]


def test_several_optimizers() -> None:
    refused("one optimizer, that of the objective; got 2", Optimizers(2))


def test_two_callbacks() -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        pl.trainer(AdaptMixCallback(), AdaptMixCallback())


def test_token_losses_at_a_head() -> None:
    with pytest.raises(ValueError, match=r'unit must be "sample" with head'):
        AdaptMixCallback(head="net", unit="token")


# Loaders.


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"a": pl.loader(), "b": pl.loader()}, "must be one DataLoader; got dict"),
        (None, "must be one DataLoader; got CombinedLoader"),
        ([1, 2, 3], "must be one DataLoader; got list"),
        (
            DataLoader(pl.dataset(), sampler=WeightedRandomSampler([1.0] * 73, 73)),
            r"drawn by WeightedRandomSampler.*importance={domain: weight}",
        ),
        (
            DataLoader(pl.dataset(), batch_sampler=BatchSampler(RandomSampler(range(73)), 4, True)),
            "drawn by BatchSampler",
        ),
        (
            DataLoader(
                pl.dataset(), batch_size=12, sampler=RandomSampler(pl.dataset(), replacement=True)
            ),
            r"drawn by RandomSampler\(replacement=True\), which",
        ),
        (
            DataLoader(pl.dataset(), sampler=RandomSampler(pl.dataset(), num_samples=20)),
            r"drawn by RandomSampler \(20 of 73 rows\), which",
        ),
        (DataLoader(pl.dataset(), batch_size=None), r"drawn one at a time \(batch_size=None\)"),
        (DataLoader(Stream()), "must be map-style.*the iterable Stream. Use Mixture"),
    ],
)
def test_loaders(data: Any, match: str) -> None:
    refused(match, data=CombinedLoader([pl.loader(), pl.loader()]) if data is None else data)


def test_rows_in_order_are_shuffled_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    data = DataLoader(pl.dataset(), batch_size=12)
    pl.trainer(AdaptMixCallback(), max_steps=1).fit(pl.Classifier(), data)
    assert "in the order of the dataset (shuffle=False)" in caplog.text


# Losses.


def test_a_mean_loss_without_a_head() -> None:
    refused(r"does not show its rows.*head=", pl.Classifier(per_sample=False))


def test_a_skipped_batch() -> None:
    class Skips(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    refused("must return a loss for every batch; got NoneType", Skips())


def test_an_optimizer_that_evaluates_twice() -> None:
    class Twice(pl.Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=3)

    refused("must get each batch of the training loader once", Twice())


def test_manual_optimization_that_weights_nothing() -> None:
    class Forgets(Optimizers):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.manual_backward(super().training_step(batch, batch_idx).mean())

    refused("A loss that is a mean does not show its rows", Forgets(1))


def test_manual_optimization_without_a_backward_pass() -> None:
    refused("must be differentiated with its rows weighted", Optimizers(1))


@pytest.mark.parametrize(("said", "every"), [(2, 1), (2, 4)])
def test_manual_optimization_with_another_accumulation_than_said(said: int, every: int) -> None:
    mixer = AdaptMixCallback(accumulation=said)

    class Manual(Optimizers):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.manual_backward(mixer.loss(super().training_step(batch, batch_idx)))
            if (batch_idx + 1) % every == 0:
                self.optimizers().step()  # type: ignore[union-attr]

    trainer = pl.trainer(mixer, max_epochs=1)
    with pytest.raises(ObjectiveError, match="must step once in 2 batches"):
        trainer.fit(Manual(1), pl.loader())


def test_losses_weighted_twice_or_outside_of_a_fit() -> None:
    mixer = AdaptMixCallback()

    class Twice(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            losses = super().training_step(batch, batch_idx)
            return mixer.loss(losses) + mixer.loss(losses)

    with pytest.raises(ObjectiveError, match="no fit is running"):
        mixer.loss(torch.ones(3))
    with pytest.raises(ObjectiveError, match="outside of it or again"):
        pl.trainer(mixer, max_epochs=1).fit(Twice(), pl.loader())
    with pytest.raises(ValueError, match="began"):
        _ = AdaptMixCallback().controller


# Runs.


def test_a_fit_goes_on_after_an_error_in_the_middle_of_a_step() -> None:
    class Fails(pl.Classifier):
        failed = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3 and not self.failed:
                self.failed = True
                raise torch.OutOfMemoryError("simulated")
            return super().training_step(batch, batch_idx)

    mixer, module = AdaptMixCallback(policy="static"), Fails()
    trainer = pl.trainer(mixer, max_steps=5, accumulate_grad_batches=2)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(module, pl.loader())
    assert mixer.controller.completed == 1
    trainer.fit(module, pl.loader())
    assert mixer.controller.completed == 5


def test_labels_of_another_fold() -> None:
    labels = [i % 2 for i in range(73)]
    mixer = AdaptMixCallback(iter(labels), policy="static")
    for _ in range(2):  # labels that can be read once are kept
        pl.trainer(mixer, max_epochs=1).fit(pl.Classifier(), pl.loader())
    fold = torch.utils.data.Subset(pl.dataset(), range(50))
    with pytest.raises(ValueError, match=r"got 73\. Pass the labels of the rows in this very"):
        pl.trainer(mixer, max_epochs=1).fit(
            pl.Classifier(), DataLoader(fold, batch_size=12, shuffle=True)
        )
