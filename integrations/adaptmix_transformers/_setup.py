"""From a Trainer and its settings to the controller of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import Trainer

from adaptmix import Controller
from adaptmix.data import Layout, PlanSampler, as_mixture, prefetching
from adaptmix.policies import Policy
from adaptmix_transformers import _internals as internals
from adaptmix_transformers._lengths import count_labels
from adaptmix_transformers._reading import UserLoss
from adaptmix_transformers._shift import shifts_labels


@dataclass(frozen=True)
class Settings:
    """The arguments of ``AdaptMixCallback``, which documents them."""

    domains: str | Iterable[Any] | None
    policy: Policy | str
    importance: Mapping[str, float] | None
    unit: str | None
    loss: UserLoss | None
    head: str | None
    lag: int | None
    seed: int | None
    mode: str
    tokens_per_row: Mapping[str, float] | None
    eval_domains: Iterable[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def make_controller(
    settings: Settings, trainer: Trainer, like: Any, *, native: Callable[..., Any]
) -> Controller:
    """Return the controller of a run, with the trainer's own objective unless told otherwise.

    Args:
        settings: of the callback.
        trainer: of the run.
        like: the loader that the trainer would train from.
        native: the trainer's own ``compute_loss``.

    Raises:
        TypeError: a dataset whose rows cannot be drawn by index.
        ValueError: domains or options that do not fit.
    """
    args = trainer.args
    mixture = as_mixture(like.dataset, settings.domains, labelled=trainer.train_dataset)
    seed = args.seed if args.data_seed is None else args.data_seed
    seed = seed if settings.seed is None else settings.seed
    shifted = shifts_labels(trainer, native, mixture, like.collate_fn, settings.loss, seed=seed)
    labels = count_labels(mixture, like.collate_fn, shifted=shifted, seed=seed)
    tokens = labels.tokens
    # At a head, rows are weighted and never tokens.
    unit = settings.unit or ("sample" if tokens is None or settings.head else "token")
    if settings.head and unit != "sample":
        raise ValueError('unit must be "sample" with head, whose rows are weighted; got "token".')
    told = tokens if unit == "token" else _unless_all(labels.supervised)
    tokens_per_row = settings.tokens_per_row or told
    importance = settings.importance
    if importance is None and tokens_per_row is not None and mixture is not like.dataset:
        # Every token counts the same, as it does for the trainer without us.
        sizes = zip(mixture.domains, mixture.sizes.tolist(), strict=True)
        importance = {name: size * tokens_per_row[name] for name, size in sizes}
    if unit == "token" and tokens_per_row is None and internals.groups_by_length(like):
        raise ValueError(
            'tokens_per_row must be given with unit="token" and rows grouped by length, where '
            "labels do not tell it: the first micro-batch has the longest rows, so that it cannot "
            "be estimated from there. Pass AdaptMixCallback(tokens_per_row={domain: mean supervised"
            " tokens per row})."
        )
    if importance is not None:
        mixture = mixture.with_importance(importance)
    lag = _layout(trainer).default_lag(**prefetching(like))
    return Controller(
        mixture,
        policy=settings.policy,
        lag=lag if settings.lag is None else settings.lag,
        seed=seed,
        unit=unit,
        mode=settings.mode,
        tokens_per_row=tokens_per_row,
        **settings.options,
    )


def _unless_all(supervised: dict[str, float] | None) -> dict[str, float] | None:
    """Return the shares of rows that have a loss, unless all rows have one."""
    some = supervised is not None and min(supervised.values()) < 1.0
    return supervised if some else None


def make_sampler(controller: Controller, trainer: Trainer, like: Any) -> PlanSampler:
    """Return the sampler of a run, with the trainer's number of steps per epoch and in all.

    Where the batches of an epoch do not divide by the accumulation, the trainer takes a smaller
    last step. The plan's steps are all of full size, and there are as many of them. Where the
    trainer groups rows by length, each step's rows are.

    Raises:
        ValueError: an option out of its range.
    """
    args, layout = trainer.args, _layout(trainer)
    epoch_steps = max(1, math.ceil(len(like) / layout.accumulation))
    in_epochs = math.ceil(args.num_train_epochs * epoch_steps)
    sampler = controller.sampler(
        layout.batch_size,
        accumulation=layout.accumulation,
        steps=args.max_steps if args.max_steps > 0 else in_epochs,
        epoch_steps=epoch_steps,
    )
    if internals.groups_by_length(like):
        sampler.group_by_length(internals.row_lengths(trainer, like))
    return sampler


def _layout(trainer: Trainer) -> Layout:
    accumulation = int(trainer.args.gradient_accumulation_steps)
    return Layout(internals.rows_per_process(trainer), accumulation)
