"""All that is used of transformers beyond its documentation, one function each.

Every function here has a test of its own, so that a new release that moves something says what.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from adaptmix.data import loader_options
from adaptmix.errors import SeamError


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
    own = trainer._get_eval_sampler
    replaced: Any = trainer
    replaced._get_eval_sampler = lambda _: own(rows)
    try:
        if isinstance(asked, str):
            trainer.eval_dataset = {**evaluated, asked: dataset}
            yield asked
        else:
            yield dataset
    finally:
        trainer.data_collator, trainer.eval_dataset = collate, evaluated
        replaced._get_eval_sampler = own


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


def refuse_unsupported(trainer: Trainer, loader: Any) -> None:
    """Refuse settings under which rows or gradients would not be what is stated.

    Raises:
        SeamError: such a setting, by its name.
        TypeError: rows that cannot be drawn by index.
    """
    loader_options(loader)
    args, accelerator = trainer.args, trainer.accelerator
    reasons = {
        "args.n_gpu > 1 (DataParallel)": args.n_gpu > 1,
        "deepspeed": trainer.is_deepspeed_enabled,
        "fsdp": trainer.is_fsdp_enabled,
        "accelerator_config.dispatch_batches": bool(accelerator.dispatch_batches),
        "accelerator_config.split_batches": bool(accelerator.split_batches),
        "use_liger_kernel": args.use_liger_kernel,
        "parallelism_config": getattr(accelerator, "parallelism_config", None) is not None,
        "packing": bool(getattr(args, "packing", False)),
        "padding_free": bool(getattr(trainer, "padding_free", False)),
    }
    ways_out = {
        "packing": (
            "It mixes domains in a row and drops their column. Pack each domain by itself before "
            "training, and set packing=False"
        ),
        "padding_free": "It puts all rows into one. Set padding_free=False",
        "args.n_gpu > 1 (DataParallel)": "Start with torchrun, or set CUDA_VISIBLE_DEVICES",
        "use_liger_kernel": (
            "Liger's loss never builds the logits that rows are weighted by. Keep its other "
            'kernels with liger_kernel_config={"fused_linear_cross_entropy": False, '
            '"cross_entropy": False} applied to the model yourself, and use_liger_kernel=False'
        ),
    }
    for name, refused in reasons.items():
        if refused:
            way_out = ways_out.get(name, "Leave it out: plain DistributedDataParallel is supported")
            raise SeamError(f"AdaptMixCallback does not work with {name}. {way_out}.")
    rows = _row_sampler(loader)
    if not isinstance(rows, (RandomSampler, SequentialSampler, LengthGroupedSampler)):
        raise SeamError(
            f"The training rows are drawn by {type(rows).__name__}, which the sampling plan would "
            'replace. Use train_sampling_strategy="random" or "group_by_length", and no sampler of '
            "your own."
        )
    size = getattr(_batch_sampler(loader), "batch_size", None)
    if size != rows_per_process(trainer):
        raise SeamError(
            f"The training loader's batches must have per_device_train_batch_size="
            f"{rows_per_process(trainer)} rows, which the sampling plan draws; got {size} from "
            "get_train_dataloader. Set per_device_train_batch_size to the size that is meant."
        )


def _batch_sampler(loader: Any) -> Any:
    """Return what makes batches, without the wrappers that deal them out to processes."""
    sampler = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    return sampler


def _row_sampler(loader: Any) -> Any:
    sampler = _batch_sampler(loader)
    return getattr(sampler, "sampler", sampler)


def groups_by_length(loader: Any) -> bool:
    """Return whether a trainer's loader groups rows by their length."""
    return isinstance(_row_sampler(loader), LengthGroupedSampler)


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
    return dataset[name][:] if name in columns else _row_sampler(loader).lengths
