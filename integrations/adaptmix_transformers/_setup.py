"""From a Trainer and its settings to the controller of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import Trainer

from adaptmix import Controller
from adaptmix.trainers import Layout, PlanSampler, as_mixture, count_labels, make_sampler
from adaptmix.trainers import Settings as CommonSettings
from adaptmix_transformers import _internals as internals
from adaptmix_transformers import _known as known
from adaptmix_transformers._packs import refuse_mixed_packs
from adaptmix_transformers._reading import UserLoss
from adaptmix_transformers._shift import shifts_labels

NUMBER = "adaptmix_number"
"""Under which a batch has the number of its micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """The arguments of ``AdaptMixCallback``, which documents them."""

    loss: UserLoss | None = None
    eval_domains: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        """Check the arguments as far as they are known without a dataset."""
        if self.loss is not None and not callable(self.loss):
            raise TypeError(
                f"loss must be a function of (outputs, inputs); got {type(self.loss).__name__}."
            )
        if self.tokens_per_row is not None and not isinstance(self.tokens_per_row, Mapping):
            raise TypeError(
                "tokens_per_row must map each domain to its mean supervised tokens per row; got "
                f"{type(self.tokens_per_row).__name__}. Leave it out to have them counted in the "
                "labels."
            )
        super().__post_init__()


def controller_of(
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
        ObjectiveError: rows of several domains in a pack.
    """
    refuse_mixed_packs(trainer, settings.domains, settings.unit)
    args = trainer.args
    mixture = as_mixture(like.dataset, settings.domains, labelled=trainer.train_dataset)
    seed = args.seed if args.data_seed is None else args.data_seed
    seed = seed if settings.seed is None else settings.seed
    shifted = shifts_labels(trainer, native, mixture, like.collate_fn, settings.loss, seed=seed)
    labels = count_labels(mixture, like.collate_fn, shifted=shifted, seed=seed)
    tokens = labels.tokens
    # At a head, rows are weighted and never tokens.
    by_row = tokens is None or settings.head or not known.averages_tokens(trainer)
    unit = settings.unit or ("sample" if by_row else "token")
    if unit == "token" and not known.averages_tokens(trainer):
        raise ValueError(
            'unit must be "sample" with a CTC loss, which has one term per row whatever its '
            f"length; got {settings.unit!r}. Leave AdaptMixCallback(unit=...) out."
        )
    counted = tokens if unit == "token" else _unless_all(labels.supervised)
    tokens_per_row: Any = settings.tokens_per_row or counted
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
    return settings.make_controller(
        mixture,
        lag=settings.lag_for(like, _layout(trainer)),
        seed=seed,
        unit=unit,
        tokens_per_row=tokens_per_row,
    )


def _unless_all(supervised: dict[str, float] | None) -> dict[str, float] | None:
    """Return the shares of rows that have a loss, unless all rows have one."""
    some = supervised is not None and min(supervised.values()) < 1.0
    return supervised if some else None


def sampler_of(controller: Controller, trainer: Trainer, like: Any) -> PlanSampler:
    """Return the sampler of a run; where the trainer groups rows by length, so does each step.

    Args:
        controller: of the run.
        trainer: of the run.
        like: the loader that the trainer would train from.

    Raises:
        ValueError: an option out of its range.
    """
    args = trainer.args
    by_steps = args.max_steps > 0
    layout = _layout(trainer)
    counted = internals.has_length(like)
    sampler = make_sampler(
        controller,
        layout,
        batches=len(like) if counted else args.max_steps * layout.accumulation,
        epochs=None if by_steps else args.num_train_epochs,
        max_steps=args.max_steps if by_steps else None,
    )
    if internals.groups_by_length(like):
        sampler.group_by_length(internals.row_lengths(trainer, like))
    return sampler


def _layout(trainer: Trainer) -> Layout:
    accumulation = int(trainer.args.gradient_accumulation_steps)
    return Layout(internals.rows_per_process(trainer), accumulation)
