"""As many steps as a trainer takes without AdaptMix."""

from __future__ import annotations

import math

from adaptmix.controller import Controller
from adaptmix.data import Layout, PlanSampler


def make_sampler(
    controller: Controller,
    layout: Layout,
    *,
    batches: int,
    epochs: float | None = None,
    max_steps: int | None = None,
) -> PlanSampler:
    """Return the sampler of a run, with the trainer's number of steps per epoch and in all.

    Where the batches of an epoch do not divide by the accumulation, trainers take a smaller last
    step. The steps here are all of full size, and there are as many of them.

    Args:
        controller: of the run.
        layout: how a step's batch is cut.
        batches: that this process would train in an epoch.
        epochs: to train at most; None for no limit.
        max_steps: optimizer steps to take at most; None for no limit.

    Raises:
        ValueError: an option out of its range.
    """
    epoch_steps = max(1, math.ceil(batches / layout.accumulation))
    limits = [] if epochs is None else [math.ceil(epochs * epoch_steps)]
    limits += [] if max_steps is None else [max_steps]
    return controller.sampler(
        layout.batch_size,
        accumulation=layout.accumulation,
        steps=min(limits, default=epoch_steps),
        epoch_steps=epoch_steps,
    )
