"""Whether a trainer's loss predicts the next token, so that a row's first label is unused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from adaptmix import Mixture
from adaptmix.trainers import IGNORED, find_loss_inputs, loss_gradients
from adaptmix_transformers import _internals as internals
from adaptmix_transformers import _known as known
from adaptmix_transformers import _rehearsal as rehearsal
from adaptmix_transformers._capture import Capture
from adaptmix_transformers._reading import UserLoss, complete
from adaptmix_transformers._recognition import recognise
from adaptmix_transformers._rows import causal_tokens

_log = logging.getLogger("adaptmix")
_ROWS = 8


def shifts_labels(
    trainer: Trainer,
    native: Callable[..., Any],
    mixture: Mixture,
    collate: Any,
    user_loss: UserLoss | None,
    *,
    seed: int,
) -> bool:
    """Return whether token labels are those of the next position.

    Of losses of transformers and TRL that is known; another one is computed once, on a few rows,
    and recognised by its gradient.

    Args:
        trainer: of the run.
        native: its own ``compute_loss``.
        mixture: of the run.
        collate: what makes a batch of rows.
        user_loss: of ``AdaptMixCallback(loss=...)``, or None.
        seed: of what is drawn on the way.
    """
    model = internals.core_model(trainer)
    by_name = internals.shifts_labels(model)
    function = getattr(model, "loss_function", None)
    if user_loss is None and known.is_sum_over_rows(trainer, native, model, function):
        return by_name
    plain = internals.plain_model(trainer)
    training = plain.training
    capture = Capture(model, head=None, within=plain)
    try:
        with rehearsal.unseen(trainer, plain, seed=seed):
            batch = collate(mixture.sample(0, _ROWS))
            labels = batch.get("labels") if hasattr(batch, "get") else None
            if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
                return by_name
            plain.train()
            found = _shift(trainer, native, plain, capture, batch, user_loss)
            return by_name if found is None else found
    except Exception as error:  # what fails here fails in training too, and says so there
        _log.debug("The loss of a sample could not be computed: %s", error)
        return by_name
    finally:
        capture.remove()
        plain.train(training)


def _shift(
    trainer: Trainer,
    native: Callable[..., Any],
    model: Any,
    capture: Capture,
    batch: dict[str, Any],
    user_loss: UserLoss | None,
) -> bool | None:
    inputs = internals.on_device(trainer, batch)
    given = dict(inputs)
    number = (given["labels"] != IGNORED).sum()
    with torch.enable_grad(), capture.open(model) as seen:
        result = native(model, inputs, num_items_in_batch=number)
    loss = result[0] if isinstance(result, tuple) else result
    if user_loss is not None:
        losses = user_loss(seen.outputs, given)
        values = losses[0] if isinstance(losses, tuple) else losses
        if values.ndim != 2 or values.shape[1] == given["labels"].shape[1]:
            return None
        return bool(values.shape[1] == given["labels"].shape[1] - 1)
    rows = len(given["labels"])
    loss_inputs = find_loss_inputs(loss, [t for t in seen.tensors if t.ndim and len(t) == rows])
    if len(loss_inputs.tensors) != 1:
        return None
    gradients = loss_gradients(loss, loss_inputs)
    found = recognise(loss_inputs.tensors[0], gradients[0], complete(trainer, seen, given))
    return None if found is None else found.rule is causal_tokens
