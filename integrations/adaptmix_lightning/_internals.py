"""All that is used of Lightning beyond its documentation, one function each.

Every function here has a test of its own, so that a new release that moves something says what.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from torch.utils.data import (
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from adaptmix.errors import ObjectiveError

_log = logging.getLogger("adaptmix")


class Source(_DataLoaderSource):
    """Where a Trainer asks for its training loader, with another loader put in its place.

    Asking late, and not in ``setup``, lets modules and data modules set up their data first.

    Args:
        original: the trainer's own source.
        replace: called with the user's loader each time the trainer asks.
    """

    def __init__(self, original: _DataLoaderSource, replace: Callable[[Any], Any]) -> None:
        super().__init__(original.instance, original.name)
        self.original, self._replace = original, replace

    def dataloader(self) -> Any:
        """Return the loader to train from."""
        return self._replace(super().dataloader())


def take_over_source(trainer: Trainer, replace: Callable[[Any], Any]) -> None:
    """Let ``replace`` see every training loader before the trainer does."""
    loop = trainer.fit_loop
    loop._data_source = Source(loop._data_source, replace)


def give_source_back(trainer: Trainer) -> None:
    """Undo ``take_over_source``; nothing where it was not called."""
    source = trainer.fit_loop._data_source
    if isinstance(source, Source):
        trainer.fit_loop._data_source = source.original


def backward_scale(trainer: Trainer) -> float:
    """Return what mixed precision multiplies the loss by."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def max_steps(trainer: Trainer) -> int:
    """Return the number of optimizer steps to stop at, or -1."""
    return int(trainer.fit_loop.epoch_loop.max_steps)


def epoch_batches(trainer: Trainer, loader: Any, limit: float) -> int:
    """Return the batches this process would train in an epoch without AdaptMix.

    Args:
        trainer: of the run.
        loader: the user's.
        limit: ``limit_train_batches``, a number of batches (int) or a share of them (float).
    """
    try:
        batches = len(loader)
    except TypeError:  # streams, whose rows nobody has counted
        if isinstance(limit, int):
            return limit
        if max_steps(trainer) > 0:
            return max_steps(trainer) * trainer.accumulate_grad_batches
        raise
    sharded = trainer._accelerator_connector.use_distributed_sampler and trainer.world_size > 1
    if sharded and not isinstance(loader.sampler, DistributedSampler):
        rows = math.ceil(len(loader.sampler) / trainer.world_size) / loader.batch_size
        batches = math.floor(rows) if loader.drop_last else math.ceil(rows)
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def handed_out(trainer: Trainer) -> int:
    """Return how many training batches a trainer has handed out, those it skipped included."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)


@contextmanager
def silent_loggers(module: LightningModule) -> Iterator[None]:
    """Let whatever a module writes to its trainer's loggers go nowhere."""
    trainer = module.trainer
    given = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in given]
    try:
        yield
    finally:
        trainer.loggers = given


def refuse_unsupported(trainer: Trainer, module: LightningModule) -> None:
    """Refuse settings under which rows or gradients would not be what is stated.

    Raises:
        ObjectiveError: such a setting, by its name.
    """
    running: Any = trainer  # whose attributes are set where type checkers do not see them
    strategy, callbacks = running.strategy, running.callbacks
    plain = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))
    step = inspect.signature(module.training_step)
    refused = {
        f"strategy {type(strategy).__name__}": (
            not plain or isinstance(strategy, DeepSpeedStrategy),
            'Use one device or strategy="ddp"',
        ),
        "overfit_batches": (
            running.overfit_batches > 0,
            "Pass a small dataset instead, such as torch.utils.data.Subset(dataset, range(64))",
        ),
        "reload_dataloaders_every_n_epochs": (
            running.reload_dataloaders_every_n_epochs > 0,
            "Leave it 0: the rows of one dataset are drawn for the whole run",
        ),
        "GradientAccumulationScheduler": (
            any(type(callback) is GradientAccumulationScheduler for callback in callbacks),
            "Use Trainer(accumulate_grad_batches=...): the global batch stays the same in a run",
        ),
        "StochasticWeightAveraging": (
            any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks),
            "Its last epoch trains nothing. Use the WeightAveraging callback",
        ),
        "training_step(dataloader_iter)": (
            "dataloader_iter" in step.parameters,
            "Use training_step(batch, batch_idx), so that each batch is known with its draw",
        ),
        "a compiled LightningModule": (
            getattr(module, "_compiler_ctx", None) is not None,
            "Hooks are ignored in compiled code: pass the uncompiled module",
        ),
    }
    for name, (found, advice) in refused.items():
        if found:
            raise ObjectiveError(f"AdaptMixCallback does not work with {name}. {advice}.")


def refuse_optimizers(trainer: Trainer) -> None:
    """Refuse several optimizers, whose steps are not those of one objective.

    Raises:
        ObjectiveError: the module configured other than one optimizer.
    """
    if len(trainer.optimizers) != 1:
        raise ObjectiveError(
            "AdaptMixCallback needs one optimizer, that of the objective; got "
            f"{len(trainer.optimizers)}. Put all parameters into groups of one optimizer."
        )


def refuse_loader(loader: Any) -> None:
    """Refuse training loaders whose rows the plan cannot draw in their place.

    Raises:
        ObjectiveError: several loaders, an iterable dataset, or rows and batches drawn by a
            sampler of the user's.
    """
    if not hasattr(loader, "batch_sampler") or not hasattr(loader, "dataset"):
        raise ObjectiveError(
            f"The training loader must be one DataLoader; got {type(loader).__name__}. Of several "
            "datasets make one, torch.utils.data.ConcatDataset, whose parts are the domains."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ObjectiveError(
            "The training dataset must be map-style, so that rows can be drawn by index, or a "
            f"Mixture with one stream for each domain; got the iterable "
            f"{type(loader.dataset).__name__}. Use Mixture({{name: stream, ...}})."
        )
    if isinstance(loader.sampler, WeightedRandomSampler):
        raise ObjectiveError(
            "The training rows are drawn by WeightedRandomSampler, which AdaptMixCallback "
            "would replace. Say how much each domain matters instead, AdaptMixCallback(..., "
            "importance={domain: weight}), and use DataLoader(dataset, batch_size=..., "
            "shuffle=True)."
        )
    own = loader.batch_size is None
    sampler = loader.batch_sampler if own else loader.sampler
    name = "one at a time (batch_size=None)" if sampler is None else f"by {type(sampler).__name__}"
    if type(sampler) is RandomSampler and sampler.replacement:
        own, name = True, f"{name}(replacement=True)"
    elif type(sampler) is RandomSampler and len(sampler) != len(loader.dataset):
        own, name = True, f"{name} ({len(sampler)} of {len(loader.dataset)} rows)"
    if own or type(sampler) not in (RandomSampler, SequentialSampler, DistributedSampler):
        raise ObjectiveError(
            f"The training rows are drawn {name}, which AdaptMixCallback would replace: it "
            "draws every domain's rows in random order, each once before any is drawn again. Use "
            "DataLoader(dataset, batch_size=..., shuffle=True) and no sampler of your own."
        )
    if type(sampler) is SequentialSampler and not getattr(loader.dataset, "streams", None):
        _log.warning(
            "The training rows come in the order of the dataset (shuffle=False), which "
            "AdaptMixCallback replaces: it draws every domain's rows in random order."
        )
