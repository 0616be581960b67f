"""Which of GRPOTrainer's objectives are a sum of one term per group, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import Trainer

from adaptmix.errors import ObjectiveError
from adaptmix_transformers._group_shape import GroupShape
from adaptmix_transformers._setup import Settings

# What the sum over tokens is divided by: the completion's own tokens, or a constant.
_BY_CONSTANT = ("grpo", "dr_grpo", "luspo", "sapo")
# The tokens of the generation batch, which are counted with their rows' weights.
BY_TOKENS = ("dapo", "cispo", "vespo")
_OWN = (
    *("compute_loss", "_compute_loss", "_prepare_inputs", "get_train_dataloader"),
    "_generate_and_score_completions",
)


def refuse_groups(trainer: Trainer, settings: Settings) -> None:
    """Refuse settings of a GRPOTrainer, or of the callback, under which groups are coupled.

    Args:
        trainer: of the run.
        settings: of the callback.

    Raises:
        ObjectiveError: such a setting, by its name.
        ValueError: a setting of the callback that has no meaning here.
    """
    args: Any = trainer.args
    shape = GroupShape.of(trainer)
    known = ", ".join((*_BY_CONSTANT, *BY_TOKENS))
    sizes = f"{shape.completions} and num_generations={shape.generations}"
    divides = "divides by the tokens of each micro-batch"
    refused: dict[str, tuple[bool, str]] = {
        f"per_device_train_batch_size={sizes}": (
            shape.completions % shape.generations != 0,
            "a group would be spread over micro-batches, and its gradient is measured in one. Use "
            "a per_device_train_batch_size that num_generations divides, with as much less "
            "gradient_accumulation_steps",
        ),
        "shuffle_dataset=False": (
            not args.shuffle_dataset,
            "prompts are drawn by task, in random order. Leave it out",
        ),
        'loss_type="bnpo"': (
            args.loss_type == "bnpo",
            f"it {divides}, so that what a completion counts depends on the lengths of those "
            f"beside it. Use one of {known}",
        ),
        f"loss_type={args.loss_type!r}": (
            args.loss_type not in (*_BY_CONSTANT, *BY_TOKENS),
            f"its normaliser is not known. Use one of {known}",
        ),
        'scale_rewards="batch"': (
            args.scale_rewards == "batch",
            "it divides advantages by the standard deviation of all rewards of a generation batch, "
            'so that each group changes the others\'. Use "group", or "none"',
        ),
        'multi_objective_aggregation="normalize_then_sum"': (
            getattr(args, "multi_objective_aggregation", "") == "normalize_then_sum",
            "it normalises rewards over a generation batch, so that each group changes the "
            'others\'. Use "sum_then_normalize"',
        ),
        f"top_entropy_quantile={args.top_entropy_quantile}": (
            args.top_entropy_quantile < 1.0,
            "its threshold is a quantile over all tokens of a micro-batch. Leave it out",
        ),
        "an entropy bonus (entropy_coef, use_adaptive_entropy)": (
            bool(getattr(trainer, "_entropy_bonus_enabled", False)),
            f"it {divides}. Leave it out",
        ),
        f"num_iterations={shape.iterations}": (
            shape.iterations > 1 and shape.together % shape.accumulation != 0,
            "steps that train completions again must be whole ones. Use a steps_per_generation "
            "that is a multiple of gradient_accumulation_steps",
        ),
    }
    for name, (given, reason) in refused.items():
        if given:
            raise ObjectiveError(f"AdaptMixCallback does not work with {name}: {reason}.")
    _refuse_own(trainer)
    _refuse_settings(settings)


def _refuse_own(trainer: Trainer) -> None:
    """Refuse a loss of one's own, and batches of one's own.

    Raises:
        ObjectiveError: the class that has them.
    """
    for name in _OWN:
        method: Callable[..., Any] = getattr(type(trainer), name)
        if not str(method.__module__).startswith("trl."):
            raise ObjectiveError(
                f"AdaptMixCallback must know how a GRPOTrainer's loss is made of its groups; got "
                f"{method.__qualname__} of your own. Put what it does into reward_funcs or "
                "rollout_func, which are free, or leave the callback out."
            )


def _refuse_settings(settings: Settings) -> None:
    """Refuse settings of the callback that mean nothing for prompts.

    Raises:
        ValueError: one of them, by its name.
    """
    held = settings.options.get("holdout")
    given = {
        'unit="token"': settings.unit == "token",
        "tokens_per_row": settings.tokens_per_row is not None,
        "head": settings.head is not None,
        "loss": settings.loss is not None,
        "holdout": held not in (None, "auto"),
        "max_epochs": settings.options.get("max_epochs") is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise ValueError(
                f"{name} must be left out with a GRPOTrainer, where a sample is a prompt with its "
                "completions, and has no labels. Leave it out."
            )
