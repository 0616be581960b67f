"""What is known by name: trainers that are refused, and losses that are sums over rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from adaptmix.errors import ObjectiveError
from adaptmix_transformers import _internals as internals
from adaptmix_transformers._group_shape import GroupShape

# Trainers whose rows are not the data set's, by what stands in the way.
_REFUSED = {
    "RLOOTrainer": "it samples answers to each prompt, several times over, and compares them",
    "KTOTrainer": (
        'its loss_type="kto" compares each answer with the mean of its batch (apo_zero_unpaired '
        "does not, and is supported)"
    ),
    "DistillationTrainer": "it generates the rows that it trains on",
    "SentenceTransformerTrainer": "its losses compare the texts of a batch with each other",
    "SparseEncoderTrainer": "its losses compare the texts of a batch with each other",
    "CrossEncoderTrainer": "its models are called by its losses, once per column",
}
_PAIRS = ("DPOTrainer", "RewardTrainer", "ORPOTrainer", "CPOTrainer")
_SUMS = (*_PAIRS, "SFTTrainer", "KTOTrainer", "GRPOTrainer")
_ALONE = "apo_zero_unpaired"  # the loss of KTOTrainer that has no baseline
_SORTED = frozenset({"aot", "aot_unpaired"})
_FUNCTIONS = frozenset(
    {
        *("ForCausalLMLoss", "ForMaskedLMLoss", "ForSequenceClassificationLoss"),
        *("ForTokenClassification", "ForQuestionAnsweringLoss", "ForSemanticSegmentationLoss"),
        "ForCTCLoss",
    }
)
# Models of transformers that compute a cross-entropy or squared error of rows themselves.
_HEADS = (
    *("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "ForCausalLM"),
    *("ForConditionalGeneration", "ForQuestionAnswering", "ForMultipleChoice", "LMHeadModel"),
    *("ForImageClassification", "ForAudioClassification", "ForCTC", "ForSemanticSegmentation"),
)


def refuse_trainer(trainer: Trainer) -> None:
    """Refuse trainers whose rows cannot be weighted.

    Raises:
        ObjectiveError: such a trainer, or loss, by its name.
    """
    alone = getattr(trainer, "loss_type", None) == _ALONE
    for kind in type(trainer).__mro__:
        if alone and kind.__name__ == "KTOTrainer":
            break
        reason = _REFUSED.get(kind.__name__)
        if reason is not None and kind.__module__.split(".")[0] in ("trl", "sentence_transformers"):
            raise ObjectiveError(
                f"AdaptMixCallback does not work with {kind.__name__}: {reason}, so that no row of "
                "the data set has a loss of its own. Mix the domains in the data set instead; "
                "transformers' Trainer and TRL's SFTTrainer, DPOTrainer, RewardTrainer, CPOTrainer,"
                " ORPOTrainer and GRPOTrainer are supported."
            )
    sorting = _SORTED & set(getattr(trainer, "loss_types", ()))
    if sorting and internals.is_a(trainer, "DPOTrainer"):
        raise ObjectiveError(
            f"loss_type must be a sum of one term per pair; got {', '.join(sorted(sorting))}, "
            "which sorts the pairs of a batch."
        )


def trains_groups(trainer: Trainer) -> bool:
    """Return whether a sample is a prompt with completions that the trainer generates."""
    return internals.is_a(trainer, "GRPOTrainer")


def rows_per_sample(trainer: Trainer) -> int:
    """Return how many rows the model runs for each that is drawn.

    They are chosen and rejected answers, or a group of completions.
    """
    if trains_groups(trainer):
        return GroupShape.of(trainer).generations
    return 2 if any(internals.is_a(trainer, name) for name in _PAIRS) else 1


def samples_of_rows(trainer: Trainer, size: int) -> Tensor | None:
    """Return the sample that each row that a model is given is of, (R,), of B samples.

    None where rows are samples.
    """
    if rows_per_sample(trainer) > 1:
        return torch.arange(size).repeat(rows_per_sample(trainer))
    return None


def is_sum_over_rows(trainer: Trainer, compute_loss: Any, model: Any, function: Any) -> bool:
    """Return whether a loss is transformers' or TRL's own, all of whose terms are of one row.

    Args:
        trainer: of the run.
        compute_loss: its bound method.
        model: that computes the loss, without wrappers.
        function: the model's ``loss_function``, or None.
    """
    methods: list[Any] = [getattr(compute_loss, "__func__", compute_loss)]
    methods += [getattr(type(trainer), "_compute_loss", None)]  # what DPOTrainer's calls
    own = all(method is None or _library(method) in ("transformers", "trl") for method in methods)
    if not own or trainer.compute_loss_func is not None:
        return False
    if any(internals.is_a(trainer, name) for name in _SUMS):
        return True
    if _library(type(model)) != "transformers":
        return False
    if function is not None and getattr(function, "__name__", "") not in _FUNCTIONS:
        return False
    return trainer.label_smoother is not None or type(model).__name__.endswith(_HEADS)


def averages_tokens(trainer: Trainer) -> bool:
    """Return whether a loss of labels that are of tokens divides by their number.

    Connectionist temporal classification has one loss for each row, whatever its length.
    """
    return not type(internals.core_model(trainer)).__name__.endswith("ForCTC")


def losses_known(trainer: Trainer) -> str:
    """Return a sentence on where rows' losses and noise are known."""
    if trains_groups(trainer):
        return "A group of completions has an advantage and no label, so that it has no noise."
    if rows_per_sample(trainer) > 1:
        return (
            "Those of pairs are known where the loss is the mean of -log(sigmoid(margin)) alone, "
            'as for DPOTrainer with loss_type=["sigmoid"], and for RewardTrainer without '
            "center_rewards_coefficient."
        )
    return (
        "They are known where its gradient is that of a cross-entropy or a squared error of logits "
        "and labels, and losses (without noise) by AdaptMixCallback(loss=f)."
    )


def _library(what: Callable[..., Any] | type) -> str:
    return str(getattr(what, "__module__", "")).split(".")[0]
