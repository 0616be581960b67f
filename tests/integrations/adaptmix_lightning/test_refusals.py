"""What does not work says so, by its name and with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

from adaptmix.errors import SeamError
from adaptmix_lightning import AdaptMixCallback, internals
from tests.integrations.adaptmix_lightning import pl

pytestmark = pl.FILTERS


def refused(match: str, module: Any = None, data: Any = None, *more: Any, **options: Any) -> None:
    trainer = pl.trainer(AdaptMixCallback(), *more, **({"max_epochs": 1} | options))
    with pytest.raises(SeamError, match=match):
        trainer.fit(
            pl.Classifier() if module is None else module, pl.loader() if data is None else data
        )


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
    with pytest.raises(SeamError, match=r"strategy FSDPStrategy. Use one device"):
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
            "drawn by WeightedRandomSampler",
        ),
        (
            DataLoader(pl.dataset(), batch_sampler=BatchSampler(RandomSampler(range(73)), 4, True)),
            "drawn by BatchSampler",
        ),
        (DataLoader(pl.dataset(), batch_size=None), "drawn by NoneType"),
        (DataLoader(Stream()), "drawn by _InfiniteConstantSampler"),
    ],
)
def test_loaders(data: Any, match: str) -> None:
    refused(match, data=CombinedLoader([pl.loader(), pl.loader()]) if data is None else data)


# Losses.


def test_a_mean_loss_without_a_head() -> None:
    refused(r"does not show its rows.*head=", pl.Classifier(per_sample=False))


def test_a_head_that_is_not_there_or_not_called() -> None:
    for head, error in (("nothing", ValueError), ("spare", SeamError)):
        module = pl.Classifier(per_sample=False)
        module.spare = torch.nn.Linear(2, 2)
        trainer = pl.trainer(AdaptMixCallback(head=head), max_epochs=1)
        with pytest.raises(error, match="head"):
            trainer.fit(module, pl.loader())


def test_a_head_that_the_loss_does_not_use() -> None:
    class Unused(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets, _ = batch
            self.net(inputs)  # the head's output is thrown away
            return F.cross_entropy(self.net[0](inputs)[:, :4], targets)

    trainer = pl.trainer(AdaptMixCallback(head="net.2", policy="static"), max_epochs=1)
    with pytest.raises(SeamError, match="must be what the loss is computed from; got 0"):
        trainer.fit(Unused(), pl.loader())


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
    with pytest.raises(SeamError, match="must step once in 2 batches"):
        trainer.fit(Manual(1), pl.loader())


def test_losses_weighted_twice_or_outside_of_a_fit() -> None:
    mixer = AdaptMixCallback()

    class Twice(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            losses = super().training_step(batch, batch_idx)
            return mixer.loss(losses) + mixer.loss(losses)

    with pytest.raises(SeamError, match="no fit is running"):
        mixer.loss(torch.ones(3))
    with pytest.raises(SeamError, match="outside of it or again"):
        pl.trainer(mixer, max_epochs=1).fit(Twice(), pl.loader())
    with pytest.raises(ValueError, match="began"):
        _ = AdaptMixCallback().controller


def test_a_batch_whose_rows_were_changed() -> None:
    class Drops(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx)[:5]

    with pytest.raises(ValueError, match="the draw's 12 rows"):
        pl.trainer(AdaptMixCallback(), max_epochs=1).fit(Drops(), pl.loader())
