"""Makes a Trainer's loss the stated objective, and proves in the first step that it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from adaptmix import Controller, Draw
from adaptmix.errors import SeamError
from adaptmix.seams import BackwardProof, HeadSeam
from adaptmix_transformers import internals
from adaptmix_transformers.reading import NumItems, Reading, RowReader
from adaptmix_transformers.seams import LossFunction

_log = logging.getLogger("adaptmix")


class Weighting:
    """Replaces the scalar that ``compute_loss`` returns, from rows' own losses.

    Args:
        trainer: of the run.
        controller: of the run.
        reader: finds rows' losses.
        adapting: whether the loss is weighted, and not only looked at.
    """

    def __init__(
        self, trainer: Trainer, controller: Controller, reader: RowReader, *, adapting: bool
    ) -> None:
        self._trainer, self._controller, self._reader = trainer, controller, reader
        self._adapting = adapting
        self._function = LossFunction(internals.core_model(trainer))
        self._with_noise = "noise" in controller.requires
        self._proof: BackwardProof | None = BackwardProof()

    def __call__(
        self,
        native: Callable[[], Any],
        model: nn.Module,
        inputs: Mapping[str, Any],
        draw: Draw,
        num_items: NumItems,
    ) -> Any:
        """Return what ``native()`` returns, with its loss weighted and recorded.

        Args:
            native: the trainer's own ``compute_loss``; a loss, or (loss, outputs).
            model: what it calls.
            inputs: of the micro-batch.
            draw: how it was drawn.
            num_items: supervised tokens of the step, where the trainer counts them.

        Raises:
            SeamError: no seam shows the rows' losses, or not those that the model is trained on.
        """
        given = dict(inputs)  # the trainer takes labels out of its own
        needed = not self._reader.found
        with self._function.open(model, detach=self._adapting, evaluate=needed) as seen:
            result = native()
        loss = result[0] if isinstance(result, tuple) else result
        reading = self._reader.read(loss, seen, given, num_items)
        if len(reading.rows.values) != len(draw):
            raise SeamError(
                f"The loss must have the {len(draw)} rows that were drawn; got "
                f"{len(reading.rows.values)}. Keep rows apart: no packing, padding_free=False."
            )
        loss = self._weighted(reading, loss, draw, num_items)
        return (loss, *result[1:]) if isinstance(result, tuple) else loss

    def _weighted(self, reading: Reading, loss: Tensor, draw: Draw, num_items: NumItems) -> Tensor:
        rows, controller = reading.rows, self._controller
        noise = None
        if self._with_noise and rows.noise is not None and controller.observing:
            noise = rows.noise()
        if self._adapting:
            weighted = controller.loss(rows.values, draw, mask=rows.mask, noise=noise)
            if self._proof is not None:
                self._proof.watch(weighted, scale=reading.scale)
            divisor = internals.loss_divisor(self._trainer, num_items)
            return weighted * (divisor * reading.scale) + reading.rest
        factors = torch.ones_like(rows.tokens) if controller.unit == "token" else rows.tokens
        controller.observe(
            loss,
            draw,
            factors=factors / self._reader.number(rows, num_items),
            losses=rows.values,
            mask=rows.mask,
            noise=noise,
        )
        return loss

    def check_step(self) -> None:
        """After the backward passes of the first step: check that they were of the stated loss.

        Raises:
            SeamError: the trainer scaled the loss, or did not differentiate it.
        """
        proof, self._proof = self._proof, None
        if proof is not None:
            proof.check(internals.backward_scale(self._trainer))

    def remove(self) -> None:
        """Give the model back as it was."""
        self._function.remove()


class HeadWeighting:
    """Leaves the trainer's loss as it is, and weights rows' gradients at a named module.

    Args:
        trainer: of the run.
        controller: of the run; its unit is "sample".
        head: name of the module.
    """

    def __init__(self, trainer: Trainer, controller: Controller, head: str) -> None:
        self._controller = controller
        self._head = HeadSeam(internals.plain_model(trainer), head)
        _log.info("Rows' gradients are weighted at the output of %r.", head)

    def __call__(
        self,
        native: Callable[[], Any],
        model: nn.Module,
        inputs: Mapping[str, Any],
        draw: Draw,
        num_items: NumItems,
    ) -> Any:
        """Return what ``native()`` returns; the arguments are those of ``Weighting``.

        Raises:
            SeamError: the forward pass did not go through the module once.
            ValueError: the module's output does not have the rows that were drawn.
        """
        factors = self._controller.multipliers(draw)
        self._head.open(factors)
        result = native()
        self._head.close()
        loss = result[0] if isinstance(result, tuple) else result
        self._controller.observe(loss, draw, factors=factors / len(draw))
        return result

    def check_step(self) -> None:
        """After a backward pass: check that it went through the module.

        Raises:
            SeamError: it did not.
        """
        self._head.check_backward()

    def remove(self) -> None:
        """Take the hook off the module."""
        self._head.remove()
