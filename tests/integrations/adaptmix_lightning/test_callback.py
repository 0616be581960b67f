"""What the callback does around a fit, and what it leaves as it was.

Also tests ``adaptmix_lightning/_loader.py`` and ``adaptmix_lightning/_setup.py``.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningDataModule, seed_everything
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_lightning.fitting import fit

pytestmark = pl.FILTERS


# Data.


class Batch(NamedTuple):
    """A batch's own structure, which must reach the module as it is."""

    inputs: Tensor
    nested: dict[str, Tensor]


def collate(rows: list[Any]) -> Batch:
    inputs, targets, numbers = (torch.stack(part) for part in zip(*rows, strict=True))
    return Batch(inputs, {"targets": targets, "numbers": numbers})


class Structured(pl.Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert type(batch) is Batch
        assert set(batch.nested) == {"targets", "numbers"}
        return super().training_step((batch.inputs, *batch.nested.values()), batch_idx)


def test_batches_keep_their_structure() -> None:
    mixer = AdaptMixCallback()
    trainer, module = fit(mixer, Structured(), pl.loader(collate_fn=collate))
    assert len(module.rows) == trainer.global_step == 7


class Data(LightningDataModule):
    """Has its dataset only after ``setup``."""

    def setup(self, stage: str) -> None:
        self.rows = pl.dataset()

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=12)


class WithData(pl.Classifier):
    """A module that brings its own loader, whose data it sets up late."""

    def setup(self, stage: str) -> None:
        self.data = pl.dataset()

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=12)


def test_data_modules_and_modules_with_loaders_are_like_loaders() -> None:
    trained = []
    cases = ((pl.Classifier(), pl.loader()), (pl.Classifier(), Data()), (WithData(), None))
    for module, data in cases:
        trainer = pl.trainer(AdaptMixCallback(), max_epochs=1)
        trainer.fit(module, data)
        trained.append(module.rows)
    assert trained[0] == trained[1] == trained[2]
    # In order is how these loaders would yield them, but the plan's order is random.
    assert sorted(trained[0][0]) != list(range(12))


class Columns(Dataset[Any]):
    """A dataset with a column of names, as Hugging Face's are."""

    column_names = ("source",)

    def __init__(self) -> None:
        self.data = pl.dataset()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int | str) -> Any:
        if isinstance(row, str):
            return self.names()
        return self.data[row]

    @staticmethod
    def names() -> list[str]:
        return [name for name, size in zip("abc", runs.SIZES, strict=True) for _ in range(size)]


def test_domains_are_parts_labels_or_a_column() -> None:
    trained = {}
    for domains in (None, "source", Columns.names()):
        data: Dataset[Any] = pl.dataset() if domains is None else Columns()
        mixer = AdaptMixCallback(domains)
        trained[str(domains)] = fit(mixer, data=DataLoader(data, batch_size=12))[1].rows
        names = mixer.controller.mixture.domains
        assert names == (("0", "1", "2") if domains is None else ("a", "b", "c"))
    assert trained["source"] == trained[str(Columns.names())] != trained["None"]  # rows go by names


@pytest.mark.parametrize(
    ("limit", "accumulation", "steps"), [(5, 2, 3), (0.5, 1, 3), (1.0, 2, 4), (1, 4, 1)]
)
def test_epochs_have_whole_steps(limit: float, accumulation: int, steps: int) -> None:
    options = {"limit_train_batches": limit, "accumulate_grad_batches": accumulation}
    trainer, module = fit(AdaptMixCallback(), max_epochs=2, **options)
    assert trainer.global_step == 2 * steps
    assert len(module.rows) == 2 * steps * accumulation
    assert {len(rows) for rows in module.rows} == {12}
    assert trainer.limit_train_batches == limit


def test_limits_of_nothing_and_fast_dev_run() -> None:
    assert fit(AdaptMixCallback(), limit_train_batches=0)[0].global_step == 0
    assert fit(AdaptMixCallback(), fast_dev_run=3)[0].global_step == 3


def test_a_step_limit_ends_the_run_in_the_middle_of_an_epoch() -> None:
    mixer = AdaptMixCallback()
    trainer, _ = fit(mixer, max_epochs=-1, max_steps=10, accumulate_grad_batches=2)
    assert trainer.global_step == mixer.controller.completed == 10


class Impatient(pl.Classifier):
    """Ends every epoch after three batches, when the fourth is fetched already."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_early_goes_on_with_the_next_step(workers: int) -> None:
    _, left = fit(AdaptMixCallback(), Impatient(), pl.loader(num_workers=workers), max_epochs=4)
    assert left.rows == fit(AdaptMixCallback(), max_epochs=4)[1].rows[:12]


def test_explicit_loader() -> None:
    mixer = AdaptMixCallback()
    explicit = mixer.loader(pl.loader())
    _, module = fit(mixer, data=explicit)
    assert module.rows == fit(AdaptMixCallback())[1].rows
    with pytest.raises(ObjectiveError, match=r"callbacks=\[callback\]"):
        pl.trainer(max_epochs=1).fit(pl.Classifier(), mixer.loader(pl.loader()))


def test_the_plan_follows_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    trained = []
    for seed in (1, 2, 1):
        seed_everything(seed, verbose=False)
        trained.append(fit(AdaptMixCallback())[1].rows)
    assert trained[0] == trained[2] != trained[1]
    assert fit(AdaptMixCallback(seed=2))[1].rows == trained[1]


def test_lag_grows_with_workers() -> None:
    mixer = AdaptMixCallback()
    fit(mixer, data=pl.loader(num_workers=1, prefetch_factor=20), limit_train_batches=2)
    assert mixer.controller.state_dict()["lag"] == 20


# Do no harm.


def test_everything_is_given_back() -> None:
    mixer, module = AdaptMixCallback(head="net.2"), pl.Classifier(per_sample=False)
    for broken in (False, True):
        trainer = pl.trainer(mixer, max_epochs=1, limit_train_batches=3)
        if broken:
            with pytest.raises(ValueError, match="rows first"):
                trainer.fit(Shrunk(), pl.loader())
        else:
            trainer.fit(module, pl.loader())
        assert "training_step" not in vars(module)
        assert type(trainer.fit_loop._data_source).__name__ == "_DataLoaderSource"
        assert trainer.limit_train_batches == 3
        assert not any(part._forward_hooks for part in module.modules())


class Shrunk(pl.Classifier):
    """Loses rows between the loader and the loss."""

    def __init__(self) -> None:
        super().__init__(per_sample=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step([part[:5] for part in batch], batch_idx)


class Validated(pl.Classifier):
    """Validates with the training step, as some modules do."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        rows = list(self.rows)
        assert self.training_step(batch, batch_idx).shape == (12,)
        self.rows = rows

    def val_dataloader(self) -> Any:
        return DataLoader(pl.dataset(), batch_size=12, drop_last=True)


@pytest.mark.parametrize("measure_every", [1, 2])
def test_validation_and_sanity_checking_change_nothing(measure_every: int) -> None:
    parameters = []
    for kind in (Validated, pl.Classifier):
        mixer = AdaptMixCallback(update_every=2, measure_every=measure_every)
        checks = {"num_sanity_val_steps": 2, "val_check_interval": 0.25}
        module = fit(mixer, kind(), max_epochs=2, **checks)[1]
        parameters.append(runs.parameters(module.net))
        assert mixer.controller.statistics.grad_var.min() > 0.0
    assert torch.equal(*parameters)


def test_observing_trains_on_a_mean_as_it_is() -> None:
    mixer = AdaptMixCallback(mode="observe", update_every=2, measure_every=1)
    module = fit(mixer, pl.Classifier(per_sample=False), max_epochs=6)[1]
    # The same rows through a trainer that knows nothing of AdaptMix.
    plain = pl.Classifier(per_sample=False)
    batches = iter(module.batches)

    class Replay(Dataset[Any]):
        def __len__(self) -> int:
            return len(module.batches)

        def __getitem__(self, row: int) -> Any:
            return next(batches)

    pl.trainer(max_epochs=1).fit(plain, DataLoader(Replay(), batch_size=None))
    torch.testing.assert_close(
        runs.parameters(module.net), runs.parameters(plain.net), rtol=1e-12, atol=1e-14
    )
    assert mixer.controller.proposed.sampling[2] > mixer.controller.mixture.importance[2]
    assert mixer.controller.predicted_gain > 1.0


@pytest.mark.parametrize("mode", ["adapt", "observe"])
def test_a_penalty_does_not_hide_what_rows_do(mode: str) -> None:
    class Penalised(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            penalty = sum(p.square().sum() for p in self.parameters())
            return super().training_step(batch, batch_idx) + 0.0 * penalty

    measured = []
    for kind in (pl.Classifier, Penalised):
        mixer = AdaptMixCallback(mode=mode, head="net.2", update_every=2, measure_every=1)
        fit(mixer, kind(per_sample=False))
        measured.append(torch.from_numpy(mixer.controller.statistics.grad_var))
    assert measured[0].min() > 0.0
    torch.testing.assert_close(measured[1], measured[0], rtol=1e-6, atol=0.0)


# Fitting again.


def test_a_trainer_that_fits_again_goes_on() -> None:
    mixers = [AdaptMixCallback(update_every=2) for _ in range(2)]
    whole = fit(mixers[0], max_epochs=4)[1]
    trainer, module = fit(mixers[1], max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    again = pl.Classifier()
    again.load_state_dict(module.state_dict())
    trainer.fit(again, pl.loader())
    assert whole.rows == module.rows + again.rows
    assert mixers[0].controller.completed == mixers[1].controller.completed == 28
    # A new trainer begins anew, with the same callback.
    assert fit(mixers[1], max_epochs=2)[1].rows == module.rows


@pytest.mark.parametrize("as_callback", [False, True])
def test_learning_rate_finder_runs_without_adaptmix_and_training_with_it(
    as_callback: bool, tmp_path: Path
) -> None:
    class Tunable(pl.Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.lr = 0.02

    mixer, module = AdaptMixCallback(update_every=2), Tunable()
    finder = LearningRateFinder(num_training_steps=8, update_attr=False)
    options = {"max_epochs": 2, "default_root_dir": tmp_path}
    if as_callback:
        pl.trainer(finder, mixer, **options).fit(module, pl.loader())
    else:
        trainer = pl.trainer(mixer, **options)
        Tuner(trainer).lr_find(module, pl.loader(), num_training=8, update_attr=False)
        module.rows.clear()
        trainer.fit(module, pl.loader())
    assert mixer.controller.completed == 14
    assert module.rows[-14:] == fit(AdaptMixCallback(update_every=2), max_epochs=2)[1].rows


def test_batch_size_finder_runs_without_adaptmix(tmp_path: Path) -> None:
    class Sized(WithData):
        batch_size = 3

        def train_dataloader(self) -> Any:
            return DataLoader(self.data, batch_size=self.batch_size)

    mixer, module = AdaptMixCallback(), Sized()
    trainer = pl.trainer(mixer, max_epochs=1, default_root_dir=tmp_path)
    Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=2)
    assert module.batch_size == 4
    module.rows.clear()
    trainer.fit(module)
    assert {len(rows) for rows in module.rows} == {module.batch_size}
    assert mixer.controller.completed == len(module.rows)


@pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")
@pytest.mark.filterwarnings("ignore::adaptmix.errors.LossWeightWarning")  # scales as below
@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")  # of nine rows
def test_joint_adapts_loss_weights_from_noise() -> None:
    class Noisy(pl.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            losses = super().training_step(batch, batch_idx)
            return {"loss": losses, "noise": batch[0].square().mean(1)}

    mixer = AdaptMixCallback(policy="joint", update_every=2, importance=dict.fromkeys("012", 1.0))
    fit(mixer, Noisy(), max_epochs=2)
    # The domains' inputs, and so what is called noise here, are on scales of 1, 9 and 81.
    assert mixer.controller.weights.loss[0] > 1.1 > 0.9 > mixer.controller.weights.loss[2]


def test_arguments_mean_what_they_mean_for_hugging_face() -> None:
    transformers = pytest.importorskip("adaptmix_transformers")
    theirs = inspect.signature(transformers.AdaptMixCallback).parameters
    ours = inspect.signature(AdaptMixCallback).parameters
    assert set(ours) - set(theirs) == {"accumulation"}
    for name in set(ours) & set(theirs) - {"unit"}:
        assert ours[name].default == theirs[name].default
