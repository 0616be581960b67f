"""Settings and samplers that are refused, by the names that a user gave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import SequentialSampler, WeightedRandomSampler
from transformers import Trainer

from adaptmix.errors import ObjectiveError
from adaptmix.trainers import loader_options
from adaptmix_transformers import _internals as internals

_PLAIN = "Leave it out: one device or plain DistributedDataParallel (torchrun) is supported"
_ADVICE = {
    "DataParallel (args.n_gpu > 1)": "Start with torchrun, or set CUDA_VISIBLE_DEVICES to one GPU",
    "Liger's cross_entropy": (
        "It takes the place of torch's, and writes gradients over the logits that rows' losses are "
        'read from. Leave it out with liger_kernel_config={"cross_entropy": False}, and keep the '
        "other kernels"
    ),
    "deepspeed": "Its engine scales and reduces gradients itself. " + _PLAIN,
    "fsdp": "It shards the parameters, so that rows' gradients are not seen. " + _PLAIN,
}


def refuse_unsupported(trainer: Trainer, loader: Any, own: Callable[..., Any]) -> None:
    """Refuse settings, and samplers, under which rows would not be what is stated.

    Args:
        trainer: of the run.
        loader: that the trainer would train from.
        own: its own ``get_train_dataloader``.

    Raises:
        ObjectiveError: such a setting, by its name.
        TypeError: rows that cannot be drawn by index.
    """
    refuse_settings(trainer, loader)
    if not internals.groups_by_length(loader) and not internals.shuffles(loader):
        _refuse_sampler(trainer, loader, own)
    size = getattr(internals.batch_sampler(loader), "batch_size", None)
    if size != internals.rows_per_process(trainer):
        raise ObjectiveError(
            "The training loader's batches must have per_device_train_batch_size="
            f"{internals.rows_per_process(trainer)} rows; got {size} from "
            f"{internals.overriding((own,))}. Set per_device_train_batch_size to that size."
        )


def refuse_settings(trainer: Trainer, loader: Any) -> None:
    """Refuse settings under which gradients would not be what is stated.

    Args:
        trainer: of the run.
        loader: that the trainer would train from.

    Raises:
        ObjectiveError: such a setting, by its name.
        TypeError: rows that cannot be drawn by index.
    """
    loader_options(loader)
    args, accelerator = trainer.args, trainer.accelerator
    settings = {
        "DataParallel (args.n_gpu > 1)": args.n_gpu > 1,
        "deepspeed": trainer.is_deepspeed_enabled,
        "fsdp": trainer.is_fsdp_enabled,
        "accelerator_config dispatch_batches=True": bool(accelerator.dispatch_batches),
        "accelerator_config split_batches=True": bool(accelerator.split_batches),
        "Liger's cross_entropy": internals.overwrites_logits(),
        "parallelism_config": getattr(accelerator, "parallelism_config", None) is not None,
    }
    for name, is_set in settings.items():
        if is_set:
            advice = _ADVICE.get(name, _PLAIN)
            raise ObjectiveError(f"AdaptMixCallback does not work with {name}. {advice}.")


def refuse_unnumbered() -> None:
    """Refuse a training batch of which nothing tells how it was drawn.

    Raises:
        ObjectiveError: always.
    """
    raise ObjectiveError(
        "A training batch must carry its number; this one lost it on the way from the loader to "
        "compute_loss, or compute_loss was called on it a second time, as adversarial training "
        "(FGM, PGD) does. Keep the keys of a batch in get_batch_samples, training_step and "
        "_prepare_inputs, and call compute_loss once."
    )


def _refuse_sampler(trainer: Trainer, loader: Any, own: Callable[..., Any]) -> None:
    """Refuse an order of rows that drawing by domain would replace.

    Raises:
        ObjectiveError: always.
    """
    rows = internals.row_sampler(loader)
    name, advice = type(rows).__name__, "Leave the sampler out"
    if getattr(rows, "replacement", False) and not isinstance(rows, WeightedRandomSampler):
        name += "(replacement=True)"
    elif isinstance(rows, WeightedRandomSampler):
        advice = (
            "Say how much each domain matters with AdaptMixCallback(importance={domain: weight}), "
            "and leave the sampler out"
        )
    elif _length(rows) not in (None, len(loader.dataset)):
        name += f" ({len(rows)} of {len(loader.dataset)} rows)"
        advice = "Pass the rows to train on as train_dataset, and leave the sampler out"
    elif isinstance(rows, SequentialSampler):
        name += " (rows in the order of the dataset)"
    strategy = getattr(trainer.args, "train_sampling_strategy", "random")
    origin = internals.overriding((own, trainer._get_train_sampler))
    if origin is None or strategy == "sequential":
        origin = f"train_sampling_strategy={strategy!r}"
        advice = 'Use train_sampling_strategy="random" or "group_by_length"'
    raise ObjectiveError(
        f"The training rows are drawn by {name} of {origin}, which AdaptMixCallback would replace: "
        "it draws every domain's rows in random order, each once before any is drawn again. "
        f"{advice}."
    )


def _length(rows: Any) -> int | None:
    return len(rows) if hasattr(rows, "__len__") else None


def refuse_uncomputed() -> None:
    """Refuse an optimizer step that follows no call of ``compute_loss``.

    Raises:
        ObjectiveError: always.
    """
    raise ObjectiveError(
        "training_step must compute the loss with self.compute_loss(model, inputs), at which "
        "AdaptMixCallback weighs rows; this optimizer step follows no call of it. Call it there "
        "instead of the model."
    )
