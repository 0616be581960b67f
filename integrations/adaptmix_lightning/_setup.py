"""From a Trainer, its loader and the callback's settings to the controller of a run."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import Trainer

from adaptmix import Controller
from adaptmix.trainers import Layout, PlanSampler, Settings, as_mixture, make_sampler
from adaptmix_lightning import _internals as internals


def controller_of(settings: Settings, like: Any, layout: Layout) -> Controller:
    """Return the controller of a run.

    Args:
        settings: of the callback.
        like: the user's loader.
        layout: how a step's batch is cut.

    Raises:
        TypeError: a dataset whose rows cannot be drawn by index.
        ValueError: domains or options that do not fit.
    """
    seed = settings.seed
    controller = settings.make_controller(
        as_mixture(like.dataset, settings.domains, importance=settings.importance),
        lag=settings.lag_for(like, layout),
        seed=int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed,
    )
    controller.count_tokens(like.collate_fn)
    return controller


def sampler_of(
    controller: Controller, trainer: Trainer, like: Any, layout: Layout, *, limit: float
) -> PlanSampler:
    """Return the sampler of a run.

    Args:
        controller: of the run.
        trainer: of the run.
        like: the user's loader.
        layout: how a step's batch is cut.
        limit: ``limit_train_batches`` as the user set it.

    Raises:
        ValueError: an option out of its range.
    """
    epochs, steps = trainer.max_epochs, internals.max_steps(trainer)
    return make_sampler(
        controller,
        layout,
        batches=internals.epoch_batches(trainer, like, limit),
        epochs=epochs if epochs is not None and epochs > 0 else None,
        max_steps=steps if steps > 0 else None,
    )
