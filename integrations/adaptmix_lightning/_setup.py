"""From a Trainer, its loader and the callback's settings to the controller of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

from adaptmix import Controller
from adaptmix.data import Layout, PlanSampler, as_mixture, prefetching
from adaptmix_lightning import _internals as internals


@dataclass(frozen=True)
class Settings:
    """The arguments of ``AdaptMixCallback``, which documents them."""

    domains: str | Iterable[Any] | None
    importance: Mapping[str, float] | None
    lag: int | None
    seed: int | None
    options: Mapping[str, Any]


def make_controller(settings: Settings, like: Any, rows: Layout) -> Controller:
    """Return the controller of a run.

    Args:
        settings: of the callback.
        like: the user's loader.
        rows: how a step's batch is cut.

    Raises:
        TypeError: a dataset whose rows cannot be drawn by index.
        ValueError: domains or options that do not fit.
    """
    seed, lag = settings.seed, rows.default_lag(**prefetching(like))
    controller = Controller(
        as_mixture(like.dataset, settings.domains, importance=settings.importance),
        lag=lag if settings.lag is None else settings.lag,
        seed=int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed,
        **settings.options,
    )
    controller.count_tokens(like.collate_fn)
    return controller


def make_sampler(
    controller: Controller, trainer: Trainer, like: Any, rows: Layout, *, limit: float
) -> PlanSampler:
    """Return the sampler of a run, with the trainer's number of steps per epoch and in all.

    Where the batches of an epoch do not divide by the accumulation, Lightning takes a smaller last
    step. The plan's steps are all of full size, and there are as many of them.

    Args:
        controller: of the run.
        trainer: of the run.
        like: the user's loader.
        rows: how a step's batch is cut.
        limit: ``limit_train_batches`` as the user set it.

    Raises:
        ValueError: an option out of its range.
    """
    batches = internals.epoch_batches(trainer, like, limit)
    epoch = max(1, math.ceil(batches / rows.accumulation))
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    limits = [steps for steps in (epoch * epochs, internals.max_steps(trainer)) if steps > 0]
    return controller.sampler(
        rows.batch_size,
        accumulation=rows.accumulation,
        steps=min(limits, default=epoch),
        epoch_steps=epoch,
    )
