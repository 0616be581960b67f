"""Rows' losses of evaluated batches, where no gradient tells what the loss is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from adaptmix_transformers import _internals as internals
from adaptmix_transformers._capture import Seen
from adaptmix_transformers._reading import NumItems, UserLoss, complete
from adaptmix_transformers._recognition import tolerance
from adaptmix_transformers._rows import RowLosses, Rule, causal_tokens, possible_rules, tokens


@torch.no_grad()
def held_out_losses(
    loss: Tensor,
    seen: Seen,
    given: Mapping[str, Any],
    *,
    trainer: Trainer,
    user_loss: UserLoss | None,
    rule: Rule | None,
    num_items: NumItems,
) -> RowLosses | None:
    """Return the losses of an evaluated batch's rows; None where they are not known.

    They must have the batch's loss for their mean, in every batch: these are reported, and nothing
    is trained on them.

    Args:
        loss: () of the batch.
        seen: what the model showed.
        given: the inputs of ``compute_loss``.
        trainer: that evaluates.
        user_loss: of ``AdaptMixCallback(loss=...)``, or None.
        rule: that training's losses follow; found by value when None.
        num_items: supervised tokens of the batch on all processes, where they are counted.
    """
    if user_loss is not None:
        losses = user_loss(seen.outputs, given)
        return RowLosses(*losses) if isinstance(losses, tuple) else RowLosses(losses)
    given = complete(trainer, seen, given)
    outputs = seen.outputs
    tensor = getattr(outputs, "log_probs", None)
    tensor = getattr(outputs, "logits", None) if tensor is None else tensor
    if tensor is None and isinstance(outputs, Mapping):
        tensor = outputs.get("logits")
    if not isinstance(tensor, Tensor):
        return None
    rules = possible_rules(tensor, given)
    if rule is not None:
        rules = [rule] if rule in rules else []
    elif causal_tokens in rules:
        shifted = internals.shifts_labels(internals.core_model(trainer))
        rules = [causal_tokens if shifted else tokens]
    found = []
    for each in rules:
        rows = each(tensor, given)
        total, number = float(rows.totals.sum()), max(float(rows.tokens.sum()), 1.0)
        means = [total / number]
        if num_items is not None:
            means.append(total * internals.world_factor(trainer, num_items) / float(num_items))
        allowed = 10.0 * tolerance(tensor.dtype) * max(abs(float(loss)), 1e-6)
        if any(abs(mean - float(loss)) <= allowed for mean in means):
            found.append(rows)
    return found[0] if len(found) == 1 else None
