"""Follows the calls of a forward into the backward pass of their micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from adaptmix.probe._coverage import Layer, ParameterMap
from adaptmix.probe._pauses import Pauses
from adaptmix.probe._rows import RowTracker
from adaptmix.probe._tracked import WHOLE, Padding, Rows, Use
from adaptmix.probe._verification import kind_of
from adaptmix.probe.estimators._micro_batch import MicroBatch

_FIRST = 4  # outputs of layers, among which one is of positions that samples are packed in


class Follower:
    """Hooks the outputs of calls, and hands their gradients to the micro-batch that they are of.

    Args:
        parameters: the model's.
        tracker: knows how tensors run over samples.
        pauses: when gradients are of something else.
        upcoming: the micro-batch of forwards that run now.

    Attributes:
        upcoming: as above.
        current: that of the backward pass that is to come, or is running; None before it is known.
    """

    def __init__(
        self, parameters: ParameterMap, tracker: RowTracker, pauses: Pauses, upcoming: MicroBatch
    ) -> None:
        self._parameters, self._tracker, self._pauses = parameters, tracker, pauses
        self.upcoming = upcoming
        self.current: MicroBatch | None = None

    @contextmanager
    def proving(self, batch: MicroBatch) -> Iterator[None]:
        """Hand the gradients of other passes than the step's to a micro-batch."""
        self.current = batch
        try:
            with self._pauses.proof():
                yield
        finally:
            self.current = None

    def refuse(self, indices: Sequence[int]) -> None:
        """Leave out parameters one of whose uses cannot be followed."""
        # A call that is a checkpoint's second one belongs to the micro-batch in its backward.
        if not _recomputing() or self.current is not None:
            self._parameters.refuse(indices)

    def on_call(
        self,
        layer: Layer,
        inputs: Sequence[Tensor],
        output: Tensor,
        rows: Rows,
        pad: Padding = WHOLE,
    ) -> None:
        """Follow one call of a layer, whose first input and output run over samples by ``rows``."""
        batch = self._following(layer.indices.values(), inputs, output, rows)
        if batch is None:
            return
        x = rows.first(inputs[0])
        size, device = x.shape[0], x.device.type
        batch.note(kind_of(layer.indices.values(), rows), output.dtype)
        if not _recomputing():
            batch.sizes[size if rows.ids is None else batch.rows] += 1
        # In a list, to be taken out when it is used: hooks live as long as the graph does.
        kept: list[Tensor | None] = []
        with torch.no_grad(), _full_precision(device):
            kept.append(batch.keep(layer, pad.inputs(x)))

        def on_backward(gradient: Tensor) -> None:
            if self._counts(batch):
                # Backward hooks inherit autocast where backward() is called inside of it.
                with torch.no_grad(), _full_precision(device):
                    g = pad.outputs(rows.first(gradient.detach()))
                    batch.add(layer, size, _taken(kept), g, rows)

        # On the output and not on the module, whose backward hooks forbid in-place activations.
        output.register_hook(on_backward)

    def on_operation(
        self, uses: Sequence[Use], inputs: Sequence[Tensor], output: Tensor, rows: Rows
    ) -> None:
        """Follow an operation that brings parameters together with samples."""
        leaves = [index for use in uses for source in use.sources for index in source.leaves]
        batch = self._following(leaves, inputs, output, rows)
        if batch is None:
            return
        batch.note(kind_of(leaves, rows), output.dtype)

        def on_backward(gradient: Tensor) -> None:
            if not self._counts(batch):
                return
            device = gradient.device.type
            with torch.no_grad(), _full_precision(device), self._pauses.aside():
                g = rows.first(gradient.detach())
                for use in uses:
                    for index, found in use.gradients(g):
                        batch.add_whole(index, found, rows.ids)

        output.register_hook(on_backward)

    def _following(
        self, indices: Iterable[int], inputs: Sequence[Tensor], output: Tensor, rows: Rows
    ) -> MicroBatch | None:
        """Return the micro-batch that a call is of; None where it has no backward pass."""
        recomputing = _recomputing()
        batch = self.current if recomputing else self.upcoming
        if batch is None:
            return None
        if not recomputing:
            # Without grad too: reentrant checkpointing runs its first forward that way.
            for index in indices:
                batch.uses[index] += 1
            batch.rows = self._tracker.samples or 0
        if not output.requires_grad:
            return None
        node = output.grad_fn
        if node is not None:
            batch.calls[node] = [up for x in inputs if (up := x.grad_fn) is not None]
        if len(batch.first) < _FIRST and not recomputing:
            # Its place in the graph, for the output itself may be needed by nobody else.
            batch.first.append((get_gradient_edge(output), output.shape))
        return batch

    def _counts(self, batch: MicroBatch) -> bool:
        """Return whether a gradient that arrives is one of the micro-batch's backward pass."""
        if self._pauses.layers:
            return False
        batch.twice |= torch.is_grad_enabled()  # create_graph
        return batch is self.current  # not collected or detached meanwhile


def _taken(kept: list[Tensor | None]) -> Tensor | None:
    """Return what was kept for a backward pass, and let go of it unless there may be another."""
    again = torch._C._autograd._get_current_graph_task_keep_graph()
    return kept[0] if again else kept.pop()


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, which costs something to switch off where it is not on."""
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def _recomputing() -> bool:
    """Return whether a backward pass is running: a forward is then a checkpoint's second one.

    It is no further use of its layers, and belongs to the micro-batch that is differentiated.
    """
    return bool(torch._C._current_graph_task_id() != -1)
