"""What is proved of a loss before its rows are weighted, and the sentences that refuse it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import Trainer

from adaptmix import additivity
from adaptmix.errors import SeamError
from adaptmix.frontier import Frontier
from adaptmix_transformers import rehearsal
from adaptmix_transformers.capture import Seen
from adaptmix_transformers.reading import Reader

_log = logging.getLogger("adaptmix")
_SEED = 0
_TIMES = 2  # halves of the rows that are exchanged in turn

WAY_OUT = (
    'Name the module that makes the rows\' logits with AdaptMixCallback(head="..."), or train with '
    'AdaptMixCallback(mode="observe"), which changes nothing.'
)


class Pass(NamedTuple):
    """One forward pass and the frontier of its loss."""

    loss: Tensor
    seen: Seen
    frontier: Frontier


def prove(loss: Tensor, frontier: Frontier, rows: int, *, known: bool, seed: int) -> list[Tensor]:
    """Return the gradients of a loss at its frontier, once it is proved to be a sum over rows.

    Args:
        loss: () of a micro-batch.
        frontier: of it.
        rows: B.
        known: whether the loss is one of a library's that is known to be a sum over rows.
        seed: of the proof.

    Raises:
        SeamError: it is not.
    """
    if frontier.overlaps():
        raise SeamError(
            "The loss must be computed from the model's outputs once; it uses one of them and "
            f"another that is computed from it, so rows would be weighted twice. {WAY_OUT}"
        )
    if frontier.reads_rows_elsewhere():
        raise SeamError(
            "The loss must depend on rows through the model's outputs only; part of it reaches "
            "parameters that see the rows in another way: a second head, hidden states, or a "
            "module called by itself. Return what it is computed from among the model's outputs, "
            "with rows first. Declared auxiliary losses (outputs.aux_loss) and penalties on "
            "parameters are kept as they are."
        )
    if frontier.scaled_by_parameters():
        refuse_coupled("parameters beside the model's outputs scale or transform the rows' terms")
    if known and not frontier.leaves:
        return [part.detach() for part in additivity.gradients(loss, frontier)]
    first = additivity.gradients(loss, frontier, twice=True)
    coupled = None
    try:
        coupled = additivity.couplings(frontier, first, samples=rows, seed=seed)
    except RuntimeError as error:  # an operation that cannot be differentiated twice
        _log.debug("The loss has no second derivative: %s", error)
    if coupled is not None:
        refuse_coupled(coupled)
    return [part.detach() for part in first]


def refuse_coupled(how: str) -> None:
    """Refuse a loss that is no sum over rows.

    Raises:
        SeamError: always.
    """
    raise SeamError(
        f"The loss must be a sum of one term per row; in this one {how}. Contrastive and ranking "
        "losses within a batch, hard-example mining and normalisers that depend on the outputs "
        "have no loss per row that could be weighted. Train on a sum over rows, or with "
        'AdaptMixCallback(mode="observe"), which changes nothing.'
    )


def refuse_unseen(loss: Tensor, seen: Seen, rows: int, blocks: int) -> None:
    """Refuse a loss that depends on no tensor with the rows that were drawn.

    Raises:
        SeamError: always.
    """
    if loss.grad_fn is not None and loss.grad_fn.name().startswith("CompiledFunction"):
        raise SeamError(
            "torch_compile does not work here: the loss is computed inside of the compiled model, "
            "where rows cannot be weighted. Compute it in compute_loss or compute_loss_func, or "
            "leave torch_compile out."
        )
    outputs = seen.outputs
    names = ", ".join(outputs) if isinstance(outputs, Mapping) else "no mapping"
    sizes = sorted({len(tensor) for tensor in seen.tensors if tensor.ndim and tensor.requires_grad})
    if sizes and rows * blocks not in sizes:
        raise SeamError(
            f"The loss must have the {rows} rows that were drawn; got "
            f"{', '.join(map(str, sizes))}. Keep rows apart and one to one: no packing, "
            "padding_free=False, and a collator that neither drops nor merges rows."
        )
    raise SeamError(
        "The loss must be computed from outputs of the model that have the rows that were drawn "
        f"first; its outputs are {names}, and it is made of none of them. {WAY_OUT}"
    )


def rehearse(
    once: Callable[[Mapping[str, Any]], Pass],
    inputs: Mapping[str, Any],
    *,
    trainer: Trainer,
    model: nn.Module,
    rows: int,
    reader: Reader,
) -> None:
    """Compute a loss on other rows and other labels, and leave no trace.

    Args:
        once: computes it.
        inputs: of the first micro-batch.
        trainer: of the run.
        model: what it calls.
        rows: B.
        reader: is told what other labels show.

    Raises:
        SeamError: kept rows' gradients depend on the other rows.
    """

    def again(given: Mapping[str, Any]) -> tuple[Pass, list[Tensor]]:
        with rehearsal.unseen(trainer, model, seed=_SEED):
            done = once(given)
            return done, additivity.gradients(done.loss, done.frontier)

    first, before = again(inputs)
    for seed in range(_TIMES if rows > 2 else 0):
        given, kept = rehearsal.exchanged(inputs, rows=rows, seed=seed)
        try:
            other, after = again(given)
        except SeamError:
            raise
        except Exception as error:  # inputs that cannot be exchanged tell nothing
            _log.debug("The loss cannot be computed on exchanged rows: %s", error)
            break
        tensors = first.frontier.tensors, other.frontier.tensors
        comparable = rehearsal.same_values(*tensors, kept)
        if comparable and not rehearsal.same_up_to_a_factor(before, after, kept):
            refuse_coupled("the gradients of rows change with the rows beside them")
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.ndim and not labels.is_floating_point():
        given = rehearsal.relabelled(inputs, classes=_classes(first), seed=_SEED)
        try:
            other, after = again(given)
        except Exception as error:
            _log.debug("The loss cannot be computed with other labels: %s", error)
            return
        reader.generalise(other.seen, other.frontier, after, given)


def _classes(done: Pass) -> int:
    tensor = done.frontier.tensors[0]
    return max(2, tensor.shape[-1] if tensor.ndim > 1 else 2)
