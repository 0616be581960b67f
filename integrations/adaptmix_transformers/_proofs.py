"""What is proved of a loss before its rows are weighted, and the sentences that refuse it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Trainer

from adaptmix import Draw, Segments
from adaptmix.errors import ObjectiveError
from adaptmix.trainers import LossInputs, couplings, loss_gradients, random_state
from adaptmix_transformers import _rehearsal as rehearsal
from adaptmix_transformers._capture import Seen
from adaptmix_transformers._reading import NumItems, Reader
from adaptmix_transformers._recognition import tolerance

_log = logging.getLogger("adaptmix")
_SEED = 0
_TIMES = 2  # halves of the rows that are exchanged in turn

WAY_OUT = (
    'Name the module that makes the rows\' logits with AdaptMixCallback(head="..."), or train with '
    'AdaptMixCallback(mode="observe"), which changes nothing.'
)


class Pass(NamedTuple):
    """One forward pass and what its loss is computed from."""

    loss: Tensor
    seen: Seen
    loss_inputs: LossInputs


class _Shown(NamedTuple):
    """What a loss is computed from, the gradients there, and where random numbers stopped."""

    tensors: list[Tensor]
    gradients: list[Tensor]
    random: Tensor


def prove(
    loss: Tensor,
    loss_inputs: LossInputs,
    draw: Draw,
    *,
    known: bool,
    shown: bool,
    seed: int,
) -> list[Tensor]:
    """Return the gradients of a loss at its inputs, once it is proved to be a sum over rows.

    Args:
        loss: () of a micro-batch.
        loss_inputs: of it.
        draw: of the micro-batch.
        known: whether the loss is one of a library's that is known to be a sum over rows.
        shown: whether ``rehearse`` saw that rows do not depend on others.
        seed: of the proof.

    Raises:
        ObjectiveError: it is not.
    """
    if loss_inputs.overlaps():
        raise ObjectiveError(
            "The loss must be computed from the model's outputs once; it uses one of them and "
            f"another that is computed from it, so rows would be weighted twice. {WAY_OUT}"
        )
    if loss_inputs.reads_rows_elsewhere():
        raise ObjectiveError(
            "The loss must depend on rows through the model's outputs only; part of it reaches "
            "parameters that see the rows in another way: a second head, hidden states, or a "
            "module called by itself. Return what it is computed from among the model's outputs, "
            "with rows first. Declared auxiliary losses (outputs.aux_loss) and penalties on "
            "parameters are kept as they are."
        )
    if loss_inputs.scaled_by_parameters():
        _refuse_fused(loss)
        refuse_coupled("parameters beside the model's outputs scale or transform the rows' terms")
    if known and not loss_inputs.leaves:
        return [part.detach() for part in loss_gradients(loss, loss_inputs)]
    first = loss_gradients(loss, loss_inputs, twice=True)
    coupled, rows = None, len(draw)
    try:
        coupled = couplings(loss_inputs, first, samples=rows, seed=seed, segments=draw.segments)
    except RuntimeError as error:  # an operation that cannot be differentiated twice
        _log.debug("The loss has no second derivative: %s", error)
        if rows > 1 and not (known or shown):
            raise ObjectiveError(
                "The loss must be a sum of one term per row, which cannot be proved of this one: "
                f"it has no second derivative ({error}), and could not be computed on other rows. "
                'Write it with differentiable operations, or use AdaptMixCallback(mode="observe").'
            ) from error
    if coupled is not None:
        refuse_coupled(coupled)
    return [part.detach() for part in first]


def refuse_coupled(how: str) -> None:
    """Refuse a loss that is no sum over rows.

    Raises:
        ObjectiveError: always.
    """
    raise ObjectiveError(
        f"The loss must be a sum of one term per row; in this one {how}. Contrastive and ranking "
        "losses within a batch, hard-example mining and normalisers that depend on the outputs "
        "have no loss per row that could be weighted. Train on a sum over rows, or with "
        'AdaptMixCallback(mode="observe"), which changes nothing.'
    )


def refuse_unseen(loss: Tensor, seen: Seen, rows: int, blocks: int) -> None:
    """Refuse a loss that depends on no tensor with the rows that were drawn.

    Raises:
        ObjectiveError: always.
    """
    if loss.grad_fn is not None and loss.grad_fn.name().startswith("CompiledFunction"):
        raise ObjectiveError(
            "torch_compile does not work here: the loss is computed inside of the compiled model, "
            "where rows cannot be weighted. Compute it in compute_loss or compute_loss_func, or "
            "leave torch_compile out."
        )
    _refuse_fused(loss)
    outputs = seen.outputs
    names = ", ".join(outputs) if isinstance(outputs, Mapping) else "no mapping"
    sizes = sorted({len(tensor) for tensor in seen.tensors if tensor.ndim and tensor.requires_grad})
    if sizes and rows * blocks not in sizes:
        raise ObjectiveError(
            f"The loss must have the {rows} rows that were drawn; got "
            f"{', '.join(map(str, sizes))}. Keep rows one to one, with a collator that drops none; "
            "one that packs them into fewer keeps their input_ids whole and in their order, and "
            "gives position_ids that start anew in each."
        )
    raise ObjectiveError(
        "The loss must be computed from outputs of the model that have the rows that were drawn "
        f"first; its outputs are {names}, and it is made of none of them. {WAY_OUT}"
    )


def _refuse_fused(loss: Tensor) -> None:
    """Refuse a loss that is computed from hidden states.

    Raises:
        ObjectiveError: such a loss, by its kernel's name.
    """
    fused = _fused(loss)
    if fused is not None:
        raise ObjectiveError(
            f"The loss must be computed from logits, at which rows are weighted; {fused} computes "
            "it from hidden states and never makes them. Switch the fused loss off, as with "
            'liger_kernel_config={"fused_linear_cross_entropy": False, "cross_entropy": False}, or '
            "with the same arguments of apply_liger_kernel_to_llama(...), and keep the other "
            "kernels."
        )


def _fused(loss: Tensor) -> str | None:
    """Return the name of a kernel that fuses the head with the loss, or None."""
    pending, known = [loss.grad_fn], {None, loss.grad_fn}
    while pending:
        node = pending.pop()
        if node is None:
            continue
        name = node.name().split("Backward")[0]
        if any(part in name for part in ("Liger", "FusedLinear", "LinearCrossEntropy")):
            return name
        for parent, _ in node.next_functions:
            if parent not in known:
                known.add(parent)
                pending.append(parent)
    return None


def rehearse(
    once: Callable[[Mapping[str, Any], NumItems], Pass],
    inputs: Mapping[str, Any],
    *,
    trainer: Trainer,
    model: nn.Module,
    draw: Draw,
    reader: Reader,
    fresh: bool,
    num_items: NumItems,
) -> bool:
    """Compute a loss on other rows, labels and numbers of tokens, and leave no trace.

    Args:
        once: computes it.
        inputs: of the micro-batch.
        trainer: of the run.
        model: what it calls.
        draw: of the micro-batch.
        reader: is told what other labels and numbers show.
        fresh: whether it was not told yet.
        num_items: supervised tokens of the step, where the trainer counts them.

    Returns:
        Whether kept rows were seen not to depend on others.

    Raises:
        ObjectiveError: kept rows, or their gradients, depend on the other rows, or the loss does
            not average over what the objective does.
    """

    def again(
        given: Mapping[str, Any],
        tokens: NumItems = num_items,
        use: Callable[[Pass, list[Tensor]], None] | None = None,
    ) -> _Shown | None:
        try:
            with rehearsal.unseen(trainer, model, seed=_SEED):
                done = once(given, tokens)
                gradients = loss_gradients(done.loss, done.loss_inputs)
                if use is not None:
                    use(done, gradients)
                # Without the graph, so that one pass at a time is in memory.
                tensors = [part.detach() for part in done.loss_inputs.tensors]
                return _Shown(tensors, gradients, random_state())
        except ObjectiveError:
            raise
        except Exception as error:  # inputs that cannot be changed so tell nothing
            _log.debug("The loss cannot be computed on changed inputs: %s", error)
            return None

    first, rows, segments, shown = again(inputs), len(draw), draw.segments, False
    if first is None:
        return shown
    for seed in range(_TIMES if rows > 1 else 0):
        given, kept = rehearsal.exchanged(inputs, rows=rows, seed=seed, segments=segments)
        other = again(given)
        if other is not None:
            shown |= _compare(first, other, kept, segments, lambda: again(inputs))
    if fresh:
        more = None if num_items is None else again(inputs, 2 * num_items)
        reader.by_step = more is not None and rehearsal.halved(first.gradients, more.gradients)
        reader.asks = reader.per_token and not reader.by_step and segments is None
    if reader.asks and rows > 1:
        reader.asks = not _check_divisor(first, again, inputs, kept)
    if not fresh:
        return shown
    scales: list[float | None] = []

    def note(done: Pass, gradients: list[Tensor]) -> None:
        if not done.loss_inputs.scaled_by_parameters():  # which is refused as what it is
            scales.append(reader.scale(done.seen, done.loss_inputs, gradients, inputs))

    if rows > 1:  # one row is all rows
        again(inputs, use=note)
        with rehearsal.nudged(model):
            again(inputs, use=note)
        again(inputs, use=note)
        _check_scale(scales, first.gradients[0].dtype)
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.ndim and not labels.is_floating_point():
        classes = max(2, first.tensors[0].shape[-1] if first.tensors[0].ndim > 1 else 2)
        given = rehearsal.relabelled(inputs, classes=classes, seed=_SEED)
        again(given, use=lambda done, g: reader.generalise(done.seen, done.loss_inputs, g, given))
    return shown


def _compare(
    first: _Shown,
    other: _Shown,
    kept: Tensor,
    segments: Segments | None,
    repeated: Callable[[], _Shown | None],
) -> bool:
    """Compare kept rows before and after the others were exchanged; return whether one can.

    Raises:
        ObjectiveError: something of theirs changed.
    """
    if rehearsal.same_values(first.tensors, other.tensors, kept, segments):
        if rehearsal.common_factor(first.gradients, other.gradients, kept, segments) is None:
            refuse_coupled("the gradients of rows change with the rows beside them")
        return True
    if not torch.equal(first.random, other.random):
        return False  # other rows take more or fewer random numbers, so all of them differ
    second = repeated()
    if second is not None and rehearsal.same_values(
        first.tensors, second.tensors, torch.ones_like(kept), segments
    ):
        refuse_coupled(
            "the outputs of rows change with the rows beside them, as those of mixup or of rows "
            "that are not first in the outputs do"
        )
    return False


def _check_divisor(
    first: _Shown,
    again: Callable[[Mapping[str, Any]], _Shown | None],
    inputs: Mapping[str, Any],
    kept: Tensor,
) -> bool:
    """Check that a loss of tokens divides by their number; return whether that could be told.

    Raises:
        ObjectiveError: it divides by the same where there are fewer of them.
    """
    given = rehearsal.silenced(inputs, kept)
    other = None if given is None else again(given)
    if other is None or not rehearsal.same_values(first.tensors, other.tensors, kept):
        return False
    factor = rehearsal.common_factor(first.gradients, other.gradients, kept)
    if factor is not None and abs(factor - 1.0) <= tolerance(first.gradients[0].dtype):
        raise ObjectiveError(
            'unit must be "sample" where the loss does not divide by the number of supervised '
            "tokens; this one divides by the same where fewer of them are. Pass "
            'AdaptMixCallback(unit="sample"), where each row counts as it does in the loss, or '
            "divide the sum over tokens by their number."
        )
    return True


def _check_scale(scales: list[float | None], dtype: torch.dtype) -> None:
    """Check that the one factor of all rows' losses is the same where the outputs are others.

    A factor that is detached has no derivative, so only other outputs show it. What changes from
    call to call tells nothing.

    Args:
        scales: of the model as it is, of another one, and of the first again, on the same rows.
        dtype: of the gradients that they were read from.

    Raises:
        ObjectiveError: it is another.
    """
    known = [scale for scale in scales if scale is not None]
    bound = 4.0 * tolerance(dtype) * max(map(abs, known), default=0.0)
    if len(known) == 3 and abs(known[1] - known[0]) > bound >= abs(known[2] - known[0]):
        refuse_coupled("what rows are multiplied or divided by depends on the outputs of all rows")
