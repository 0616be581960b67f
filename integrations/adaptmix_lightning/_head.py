"""What is proved of a loss whose rows are weighted at a head, before each backward pass."""

from __future__ import annotations

import logging

from torch import Tensor

from adaptmix import Controller
from adaptmix.errors import ObjectiveError
from adaptmix.trainers import couplings, find_loss_inputs, loss_gradients, uneven_targets

_log = logging.getLogger("adaptmix")
_ADVICE = (
    "Name the module whose output the loss is computed from, the logits of a head, or return "
    'unreduced losses from training_step (reduction="none") and leave head= out.'
)


class HeadProof:
    """Proves that a loss is a mean of one term per row of a head's output.

    That it is a sum over rows is proved in the first step and in observed ones; that rows count
    alike in it, in every step, for which a device is waited for in those steps only.

    Args:
        controller: of the run.
        name: of the head.
    """

    def __init__(self, controller: Controller, name: str) -> None:
        self._controller, self._name = controller, name
        self._uneven: Tensor | None = None

    def check(self, loss: Tensor, output: Tensor, rows: int) -> None:
        """Check a loss before its backward pass, and before any hook of ours is on it.

        Args:
            loss: () what is differentiated.
            output: of the head, as the loss was computed from it.
            rows: B.

        Raises:
            ObjectiveError: it is no such mean.
        """
        closely = self._controller.observing or self._controller.completed == 0
        found = uneven_targets(loss, rows)
        if found is not None:
            self._uneven = found if self._uneven is None else self._uneven | found
        if self._uneven is not None and (closely or self._uneven.device.type == "cpu"):
            _refuse_uneven(self._uneven)
        if closely:
            self._prove_sum(loss, output, rows)

    def _prove_sum(self, loss: Tensor, output: Tensor, rows: int) -> None:
        loss_inputs = find_loss_inputs(loss, [output])
        if not loss_inputs.tensors or len(output) % rows:
            return  # which is said after the backward pass
        if loss_inputs.reads_rows_elsewhere() or loss_inputs.scaled_by_parameters():
            raise ObjectiveError(
                f"head={self._name!r} must be the last module that has parameters; the loss "
                "reaches parameters behind or beside it, whose gradients would not be weighted "
                f"row by row. {_ADVICE}"
            )
        try:
            first = loss_gradients(loss, loss_inputs, twice=True)
            coupled = couplings(loss_inputs, first, samples=rows, seed=self._controller.completed)
        except RuntimeError as error:  # an operation that cannot be differentiated twice
            _log.debug("The loss has no second derivative: %s", error)
            return
        if coupled is not None:
            raise ObjectiveError(
                f"With head=, the loss must be a sum of one term per row; in this one {coupled}, "
                "as in contrastive losses, ranking within a batch, and normalisers that depend on "
                f"outputs. Train on a sum over rows. {_ADVICE}"
            )


def _refuse_uneven(uneven: Tensor) -> None:
    if bool(uneven):
        raise ObjectiveError(
            "With head=, the loss must be a mean of one term per row; got a mean over targets "
            "that are not ignored, of which rows have different numbers, so that each row's share "
            "of the gradient depends on the others. Return unreduced losses and which count, "
            '{"loss": F.cross_entropy(..., reduction="none"), "loss_mask": targets != -100} of '
            'shape (B, T), and leave head= out; unit="token" makes it a mean over tokens.'
        )
