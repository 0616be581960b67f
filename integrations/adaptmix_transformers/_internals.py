"""All that is used of transformers beyond its documentation, one function each.

Every function here has a test of its own, so that a new release that moves something says what.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import Trainer, TrainerCallback, trainer_utils
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from adaptmix.trainers import Replacements


def find_trainer(callback: TrainerCallback) -> Trainer | None:
    """Return the trainer that is being constructed with ``callback``, or None.

    Callbacks are handed arguments and state but never their trainer, so it is looked up among the
    callers: ``on_init_end`` is called from ``Trainer.__init__``.
    """
    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and callback in owner.callback_handler.callbacks:
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def is_attached(trainer: Trainer, callback: TrainerCallback) -> bool:
    """Return whether a trainer still has the callback."""
    return callback in trainer.callback_handler.callbacks


def plain_model(trainer: Trainer) -> Any:
    """Return the model as the user passed it: without wrappers for processes and compilation."""
    return trainer.accelerator.unwrap_model(trainer.model)


def core_model(trainer: Trainer) -> Any:
    """Return the model that computes the loss, without adapters too."""
    model = plain_model(trainer)
    get_base_model = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()


def on_device(trainer: Trainer, batch: Any) -> Any:
    """Return a batch as the trainer hands it to ``compute_loss``."""
    return trainer._prepare_inputs(batch)


def rows_per_process(trainer: Trainer) -> int:
    """Return the rows of a micro-batch on this process; ``auto_find_batch_size`` lowers it."""
    return int(trainer._train_batch_size)


def shifts_labels(model: nn.Module) -> bool:
    """Return whether a model's loss predicts the next token, so that the first label is unused."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    config = getattr(model, "config", None)
    function = getattr(model, "loss_function", None)
    # A capture's stand-in tells what it stands in for.
    function = getattr(getattr(function, "__self__", None), "loss_function", function)
    causal = function is ForCausalLMLoss
    return causal and not getattr(config, "is_encoder_decoder", False)


def tokens_are_counted(trainer: Trainer, num_items: Tensor | int | None) -> bool:
    """Return whether the loss is divided by the supervised tokens of the whole step."""
    by_whom = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    return num_items is not None and by_whom


def world_factor(trainer: Trainer, num_items: Tensor | int | None) -> int:
    """Return what ``compute_loss`` multiplies the loss by, against averaging over processes."""
    averaged = trainer.args.average_tokens_across_devices and tokens_are_counted(trainer, num_items)
    return int(trainer.accelerator.num_processes) if averaged else 1


def loss_divisor(trainer: Trainer, num_items: Tensor | int | None) -> int:
    """Return what ``training_step`` divides the loss by before its backward pass."""
    declared = getattr(trainer, "loss_is_scaled_for_ga", None)  # since transformers 5.20
    scaled = declared
    if declared is None:
        counted = trainer.model_accepts_loss_kwargs and num_items is not None
        scaled = counted or trainer.compute_loss_func is not None
    return 1 if scaled else int(trainer.current_gradient_accumulation_steps)


def backward_scale(trainer: Trainer) -> float:
    """Return what mixed precision multiplies the loss by."""
    scaler = trainer.accelerator.scaler
    return 1.0 if scaler is None else float(scaler.get_scale())


def smoothing(trainer: Trainer) -> float:
    """Return the label smoothing that the trainer applies itself."""
    smoother = trainer.label_smoother
    return 0.0 if smoother is None else float(smoother.epsilon)


def evaluated(trainer: Trainer, asked: Any) -> Any:
    """Return the dataset that ``get_eval_dataloader(asked)`` is about; None where there is none."""
    datasets: Any = trainer.eval_dataset
    if asked is None:
        return datasets
    return datasets[asked] if isinstance(asked, str) else asked


def used_columns(trainer: Trainer, dataset: Any) -> Any:
    """Return a dataset without the columns that the trainer would leave out."""
    columns = hasattr(dataset, "column_names") and hasattr(dataset, "remove_columns")
    return trainer._remove_unused_columns(dataset) if columns else dataset


@contextmanager
def evaluating(
    trainer: Trainer, asked: Any, rows: Any, dataset: Any, collator: Callable[[Any], Any]
) -> Iterator[Any]:
    """Let ``get_eval_dataloader`` take another dataset and collator for a moment.

    Args:
        trainer: of the run.
        asked: argument of ``get_eval_dataloader``: a dataset, a name, or None.
        rows: the dataset without the columns that the trainer leaves out; the sampler looks at it.
        dataset: to evaluate in its place; its items are no mappings, so that the trainer removes
            no columns from them.
        collator: wraps the trainer's own.

    Yields:
        the argument to call it with.
    """
    collate, evaluated = trainer.data_collator, cast(Any, trainer.eval_dataset)
    removing = trainer._get_collator_with_removed_columns(collate, description="Evaluation")
    trainer.data_collator = collator(removing)
    sampler = Replacements(trainer)
    sampler.replace("_get_eval_sampler", lambda _: sampler["_get_eval_sampler"](rows))
    try:
        if isinstance(asked, str):
            trainer.eval_dataset = {**evaluated, asked: dataset}
            yield asked
        else:
            yield dataset
    finally:
        trainer.data_collator, trainer.eval_dataset = collate, evaluated
        sampler.restore()


def tensorboard_writer(trainer: Trainer) -> Any:
    """Return the SummaryWriter the trainer logs to, or None."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            return getattr(callback, "tb_writer", None)
    return None


def is_a(trainer: Trainer, name: str) -> bool:
    """Return whether a trainer is, or inherits from, TRL's class of that name."""
    kinds = type(trainer).__mro__
    return any(kind.__name__ == name and kind.__module__.startswith("trl.") for kind in kinds)


def overwrites_logits() -> bool:
    """Return whether Liger's cross-entropy is called for torch's, wherever it is used."""
    return functional.cross_entropy.__module__.startswith("liger_kernel.")


def batch_sampler(loader: Any) -> Any:
    """Return what makes batches, without the wrappers that deal them out to processes."""
    sampler = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    return sampler


def row_sampler(loader: Any) -> Any:
    """Return what draws rows for a trainer's loader."""
    sampler = batch_sampler(loader)
    return getattr(sampler, "sampler", sampler)


def groups_by_length(loader: Any) -> bool:
    """Return whether a trainer's loader groups rows by their length."""
    return type(row_sampler(loader)) is LengthGroupedSampler


def has_length(loader: Any) -> bool:
    """Return whether the rows of a loader's dataset are counted; those of streams may not be."""
    return bool(trainer_utils.has_length(loader.dataset))


def shuffles(loader: Any) -> bool:
    """Return whether a trainer's loader takes each row once, in random order."""
    rows = row_sampler(loader)
    if not has_length(loader):  # all that a trainer can do is take rows as they come
        return type(rows) is SequentialSampler
    plain = type(rows) in (RandomSampler, SeedableRandomSampler) and not rows.replacement
    return plain and len(rows) == len(loader.dataset)


def overriding(methods: Iterable[Callable[..., Any]]) -> str | None:
    """Return "Class.method" of the first of a trainer's bound methods that is not Trainer's own."""
    for method in methods:
        function = getattr(method, "__func__", method)
        if function is not getattr(Trainer, function.__name__, None):
            return ".".join(function.__qualname__.split(".")[-2:])
    return None


def row_lengths(trainer: Trainer, loader: Any) -> Any:
    """Return the length of each training row.

    Args:
        trainer: of the run.
        loader: that the trainer would train from; it groups rows by their length.
    """
    # The trainer drops the column with those that the model does not take, before it looks for it.
    dataset: Any = trainer.train_dataset
    name = trainer.args.length_column_name
    columns = getattr(dataset, "column_names", None) or ()
    return dataset[name][:] if name in columns else row_sampler(loader).lengths
