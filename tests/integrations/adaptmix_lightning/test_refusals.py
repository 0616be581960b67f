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

from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from adaptmix_lightning import _internals as internals
from tests import runs
from tests.integrations.adaptmix_lightning import pl

pytestmark = pl.FILTERS


def refused(match: str, module: Any = None, data: Any = None, *more: Any, **options: Any) -> None:
    trainer = pl.trainer(AdaptMixCallback(), *more, **({"max_epochs": 1} | options))
    with pytest.raises(ObjectiveError, match=match):
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
        (DataLoader(Stream()), "must be map-style.*the iterable Stream. Load it without streaming"),
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


def test_a_head_that_is_not_there_or_not_called() -> None:
    for head, error in (("nothing", ValueError), ("spare", ObjectiveError)):
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
    with pytest.raises(ObjectiveError, match="must be what the loss is computed from; got 0"):
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


def test_a_batch_whose_rows_were_changed() -> None:
    class Drops(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx)[:5]

    with pytest.raises(ValueError, match="the draw's 12 rows"):
        pl.trainer(AdaptMixCallback(), max_epochs=1).fit(Drops(), pl.loader())


# Batches.


class Collator:
    """Stacks rows; some batches come as None, or without some rows, or sorted."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, rows: Any) -> Any:
        if self.kind == "none" and int(rows[0][2]) % 3 == 0:
            return None
        if self.kind == "drops":
            rows = [row for row in rows if int(row[2]) % 7]
        if self.kind == "sorts":
            rows = sorted(rows, key=lambda row: float(row[0][0]))
        return torch.utils.data.default_collate(rows)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("none", "must make a batch of its 12 rows; got None.*placeholder rows"),
        ("sorts", "must keep rows in the order it is given them"),
    ],
)
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_collators_that_leave_out_batches_or_sort(kind: str, match: str, workers: int) -> None:
    data = pl.loader(collate_fn=Collator(kind), num_workers=workers)
    refused(match, data=data, max_epochs=4)


def test_rows_left_out_of_a_batch() -> None:
    for head in (None, "net"):
        trainer = pl.trainer(AdaptMixCallback(head=head, policy="static"), max_epochs=4)
        with pytest.raises(ValueError, match="the draw's 12 rows"):
            trainer.fit(
                pl.Classifier(per_sample=head is None), pl.loader(collate_fn=Collator("drops"))
            )


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None")
def test_a_batch_that_a_hook_leaves_out() -> None:
    """Every later batch would have been weighted by the domains of the one before."""

    class Skips(pl.Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return None if int(batch[2][0]) % 3 == 0 else batch

    refused("Every batch must be trained; . before this one did not reach", Skips(), max_epochs=4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_numbers_travel_with_batches_that_hooks_replace(accumulation: int) -> None:
    """Rows are those of the draw, in every epoch and after a validation in the middle."""

    class Replaces(pl.Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return tuple(part.clone() for part in batch)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert mixer._weighting is not None
            draw = mixer._weighting._draw
            assert draw is not None
            drawn.append((batch[2], draw.rows - starts[draw.domains]))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    drawn: list[Any] = []
    starts = torch.tensor([0, *runs.SIZES]).cumsum(0)
    mixer = AdaptMixCallback(policy="static")
    trainer = pl.trainer(
        mixer, max_epochs=3, accumulate_grad_batches=accumulation, val_check_interval=2
    )
    trainer.fit(Replaces(), pl.loader(), DataLoader(pl.dataset(), batch_size=12))
    assert len(drawn) == (24 if accumulation == 2 else 21)
    for rows, expected in drawn:
        assert torch.equal(rows, expected)


# A head.


class Tags(pl.Classifier):
    """A mean over the targets that count, of four in each row."""

    def __init__(self, ignored: Any, **options: Any) -> None:
        super().__init__(per_sample=False)
        self.head = torch.nn.Linear(4, 12).double()
        self.ignored, self.options = ignored, options

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets, rows = batch
        logits = self.head(self.net(inputs)).view(len(rows), 4, 3)
        labels = (targets.unsqueeze(1) + torch.arange(4)) % 3
        labels = labels.masked_fill(self.ignored(rows), -100)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), **self.options)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_a_mean_over_targets_that_count(options: dict[str, Any]) -> None:
    def some(rows: torch.Tensor) -> torch.Tensor:
        return torch.arange(4) >= 1 + (rows % 3).unsqueeze(1)

    def late(rows: torch.Tensor) -> torch.Tensor:
        return some(rows) if int(rows[0]) % 5 == 1 else torch.zeros(len(rows), 4).bool()

    def alike(rows: torch.Tensor) -> torch.Tensor:
        return (torch.arange(4) == (rows % 4).unsqueeze(1)).bool()

    for ignored in (some, late):
        trainer = pl.trainer(AdaptMixCallback(head="head", policy="static"), max_epochs=9)
        with pytest.raises(ObjectiveError, match=r"mean of one term per row; .*loss_mask"):
            trainer.fit(Tags(ignored, **options), pl.loader())
    mixer = AdaptMixCallback(head="head", policy="static")
    pl.trainer(mixer, max_epochs=1).fit(Tags(alike, **options), pl.loader())
    assert mixer.controller.completed == 7


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


class Headed(pl.Classifier):
    """Ends in two layers and a loss of the test's choice."""

    def __init__(self, loss: Any) -> None:
        super().__init__(per_sample=False)
        self.loss = loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets, _ = batch
        return self.loss(self, self.net(inputs), targets)


def centred(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss whose rows meet: each logit is compared with the batch's mean."""
    return F.cross_entropy(logits - logits.mean(0), targets)


@pytest.mark.parametrize(
    ("head", "loss", "match"),
    [
        ("net.0", lambda _, z, y: F.cross_entropy(z, y), "must be the last module that has param"),
        ("net.2", lambda _, z, y: centred(z, y), "a sum of one term per row; in this one"),
        ("net.2", lambda m, z, y: F.cross_entropy(z, y) * m.net[2].bias.square().sum(), "beside"),
    ],
)
def test_losses_that_are_no_sum_over_rows_of_the_head(head: str, loss: Any, match: str) -> None:
    trainer = pl.trainer(AdaptMixCallback(head=head, policy="static"), max_epochs=1)
    with pytest.raises(ObjectiveError, match=match):
        trainer.fit(Headed(loss), pl.loader())


def test_a_loss_that_couples_rows_later() -> None:
    """In its eighth step, and observed ones find it."""

    def late(module: Any, logits: Any, targets: Any) -> Any:
        if module.global_step < 7:
            return F.cross_entropy(logits, targets)
        return centred(logits, targets)

    mixer = AdaptMixCallback(head="net.2", policy="static", update_every=4)
    with pytest.raises(ObjectiveError, match="one term per row; in this one"):
        pl.trainer(mixer, max_epochs=4).fit(Headed(late), pl.loader())
    assert mixer.controller.completed <= 7 + 4


def test_penalties_stay_as_they_are_at_a_head() -> None:
    def penalised(module: Any, logits: Any, targets: Any) -> Any:
        return F.cross_entropy(logits, targets) + sum(p.square().sum() for p in module.parameters())

    mixer = AdaptMixCallback(head="net.2", policy="static")
    pl.trainer(mixer, max_epochs=1).fit(Headed(penalised), pl.loader())
    assert mixer.controller.completed == 7


@pytest.mark.parametrize("head", [None, "net"])
@pytest.mark.parametrize("later", [False, True])
def test_rows_that_the_module_puts_into_another_order(head: str | None, later: bool) -> None:
    class Sorts(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if later and self.global_step < 5:
                return super().training_step(batch, batch_idx)
            order = batch[0][:, 0].argsort()
            return super().training_step([part[order] for part in batch], batch_idx)

    mixer = AdaptMixCallback(head=head, policy="static", update_every=3)
    with pytest.raises(
        ObjectiveError, match="training_step must keep rows in the order of the batch"
    ):
        pl.trainer(mixer, max_epochs=3).fit(Sorts(per_sample=head is None), pl.loader())
    assert mixer.controller.completed == (5 if later else 0)
