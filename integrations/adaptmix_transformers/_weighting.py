"""Weights rows' gradients where a trainer's loss meets the model, and proves what that does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from adaptmix import Controller, Draw
from adaptmix.errors import MissingStatisticError, ObjectiveError
from adaptmix.trainers import BackwardProof, LossInputs, Refusals, Watch, find_loss_inputs
from adaptmix_transformers import _internals as internals
from adaptmix_transformers import _known as known
from adaptmix_transformers import _proofs as proofs
from adaptmix_transformers import _rehearsal as rehearsal
from adaptmix_transformers._capture import Capture, Seen
from adaptmix_transformers._late_choices import LateChoices
from adaptmix_transformers._pairs import pair_losses
from adaptmix_transformers._reading import NumItems, Reader, Reading
from adaptmix_transformers._refusals import refuse_uncomputed
from adaptmix_transformers._rows import RowLosses, Rule
from adaptmix_transformers._setup import Settings

_log = logging.getLogger("adaptmix")

Native = Callable[[Any, NumItems], Any]
"""The trainer's own ``compute_loss``: from inputs and tokens to a loss, or to (loss, outputs)."""


class Weighting:
    """Leaves the trainer's loss as it is, and multiplies rows' gradients at its loss_inputs.

    Args:
        trainer: of the run.
        controller: of the run.
        settings: of the callback.
        native: the trainer's own ``compute_loss``, a bound method.
        watch: returns the gradient probe's handle; None where there is none.

    Raises:
        ValueError: a head that the model does not have.
    """

    def __init__(
        self,
        trainer: Trainer,
        controller: Controller,
        settings: Settings,
        native: Any,
        watch: Callable[[], Watch | None],
    ) -> None:
        self._watch = watch
        self._trainer, self._controller = trainer, controller
        self._adapting = settings.mode == "adapt"
        self._accumulation = int(trainer.args.gradient_accumulation_steps)
        self._blocks = known.rows_per_sample(trainer)
        self._capture = Capture(
            internals.core_model(trainer), head=settings.head, within=internals.plain_model(trainer)
        )
        function = self._capture.loss_function
        model = internals.core_model(trainer)
        self._known = known.is_sum_over_rows(trainer, native, model, function)
        self._reader = Reader(trainer, unit=controller.unit, user_loss=settings.loss)
        self._policy = settings.policy
        self._first: BackwardProof | None = BackwardProof()
        self._arrived: list[tuple[LossInputs, list[int]]] = []
        self.rehearsed = self._known or not self._adapting
        self._proved = self._shown = self._unknown = self._computed = False
        self._late_choices = LateChoices()
        self._refusals = Refusals(controller)

    @property
    def rule(self) -> Rule | None:
        """The rule that rows' losses follow; None where none is known, or not yet."""
        return self._reader.rule

    def rehearse(
        self, native: Native, model: nn.Module, inputs: Any, draw: Draw, num_items: NumItems
    ) -> None:
        """Before a micro-batch, compute its loss on other rows and labels, without a trace.

        Before the first one, and again where a measured loss is computed in another way.

        Args:
            native: as in a call.
            model: as in a call.
            inputs: as in a call.
            draw: as in a call.
            num_items: as in a call.

        Raises:
            ObjectiveError: the loss is no sum of one term per row.
        """

        def once(given: Mapping[str, Any], num_items: NumItems) -> proofs.Pass:
            with self._capture.open(model) as seen:
                loss = _loss(native(rehearsal.like(inputs, given), num_items))
            return proofs.Pass(loss, seen, self._loss_inputs(loss, seen, draw))

        with self._refusals.kept():
            self._shown = proofs.rehearse(
                once,
                inputs,
                trainer=self._trainer,
                model=model,
                draw=draw,
                reader=self._reader,
                fresh=not self._proved,
                num_items=num_items,
            )
        self.rehearsed = self._late_choices.rehearsed(told=not self._reader.asks)

    def __call__(
        self, native: Native, model: nn.Module, inputs: Any, draw: Draw, num_items: NumItems
    ) -> Any:
        """Return what ``native(inputs)`` returns, with rows' gradients weighted and recorded.

        Args:
            native: the trainer's own ``compute_loss``; a loss, or (loss, outputs).
            model: what it calls.
            inputs: of the micro-batch.
            draw: how it was drawn.
            num_items: supervised tokens of the step, where the trainer counts them.

        Raises:
            MissingStatisticError: the policy needs what this loss does not tell.
            ObjectiveError: the rows of the loss cannot be weighted as stated.
        """
        self._computed = True
        given = dict(inputs)  # the trainer takes labels out of its own
        with self._capture.open(model) as seen:
            result = native(inputs, num_items)
        loss = _loss(result)
        with self._refusals.kept():
            if not self._refusals.refused:
                self._weight(loss, seen, given, draw, num_items)
        if self._refusals.refused:  # and yet this process takes part in what all of them do
            with self._refusals.kept():
                self._controller.observe(loss, factors=torch.ones(len(draw)), draw=draw)
        return result

    def _weight(
        self, loss: Tensor, seen: Seen, given: Any, draw: Draw, num_items: NumItems
    ) -> None:
        weigh = self._weighed if self._adapting else self._looked_at
        reading, multipliers, loss_inputs = weigh(loss, seen, given, draw, num_items)
        outputs = () if loss_inputs is None else loss_inputs.tensors
        if self._first is not None and self._adapting:
            divisor = internals.loss_divisor(self._trainer, num_items)
            self._first.watch(loss, scale=1.0 / divisor)
        samples = known.samples_of_rows(self._trainer, len(draw))
        self._record(loss, draw, reading, multipliers, samples=samples, outputs=outputs)
        if loss_inputs is not None:
            # Last, for the probe's proofs go through the same nodes where processes share a sink.
            self._arrived.append((loss_inputs, loss_inputs.scale(multipliers, draw.segments)))

    def _weighed(
        self, loss: Tensor, seen: Seen, given: Any, draw: Draw, num_items: NumItems
    ) -> tuple[Reading, Tensor, LossInputs | None]:
        controller = self._controller
        loss_inputs = self._loss_inputs(loss, seen, draw)
        gradients: list[Tensor] = []
        if controller.observing or not self._proved:
            gradients = self._prove(loss, loss_inputs, draw, shown=self._shown)
            self._proved = True
            if not self._known:
                wanted = self._late_choices.wanted(loss_inputs.operations, gradients)
                self.rehearsed = self.rehearsed and not wanted
        reading = self._read(loss, seen, loss_inputs, gradients, given, num_items, draw)
        multipliers = reading.multipliers(
            controller.multipliers(draw),
            controller.expected_tokens(draw),
            parts=self._accumulation / internals.loss_divisor(self._trainer, num_items),
        )
        multipliers = multipliers.to(loss.device, non_blocking=True)
        return reading, multipliers, loss_inputs

    def _looked_at(
        self, loss: Tensor, seen: Seen, given: Any, draw: Draw, num_items: NumItems
    ) -> tuple[Reading, Tensor, LossInputs | None]:
        """Read what can be read of a loss that is left alone."""
        size = len(draw)
        try:
            loss_inputs, gradients = None, []
            if not self._unknown and (self._controller.observing or not self._proved):
                loss_inputs = self._loss_inputs(loss, seen, draw)
                try:
                    gradients = self._prove(loss, loss_inputs, draw, shown=False)
                except ObjectiveError as error:
                    self._leave_unknown(error)
                    raise
            reading = self._read(loss, seen, loss_inputs, gradients, given, num_items, draw)
        except ObjectiveError as error:
            self._reader.say(f"Rows' losses are not known: {error}")
            reading = Reading(size, self._controller.unit == "token")
        self._proved = True
        return reading, torch.ones(size, device=loss.device), None

    def _read(
        self,
        loss: Tensor,
        seen: Seen,
        loss_inputs: LossInputs | None,
        gradients: list[Tensor],
        given: Any,
        num_items: NumItems,
        draw: Draw,
    ) -> Reading:
        size = len(draw)
        if known.trains_groups(self._trainer):  # TRL divides by the accumulation itself
            return Reading(size, per_token=False, counted=True)
        reading = self._reader.read(
            seen, loss_inputs, gradients, given, num_items, size=size, segments=draw.segments
        )
        if loss_inputs is None or not gradients or self._blocks == 1 or reading.rows is not None:
            return reading
        with self._aside():
            return replace(reading, rows=pair_losses(loss, loss_inputs, size))

    def _prove(
        self, loss: Tensor, loss_inputs: LossInputs, draw: Draw, *, shown: bool
    ) -> list[Tensor]:
        """Return the gradients of a loss that is a sum over rows, and let nobody see the proof.

        Raises:
            ObjectiveError: it is no such sum.
        """
        seed = self._controller.completed
        with self._aside():
            return proofs.prove(loss, loss_inputs, draw, known=self._known, shown=shown, seed=seed)

    def _aside(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is measured of what is differentiated."""
        watch = self._watch()
        return nullcontext() if watch is None else watch.aside()

    def _leave_unknown(self, error: ObjectiveError) -> None:
        """Say once why gradients are not measured, and take the gradient probe off."""
        if not self._unknown:
            self._unknown = True
            _log.warning("Gradients are not measured in this run: %s", error)
        watch = self._watch()
        if watch is not None:
            watch.remove()

    def _record(
        self,
        loss: Tensor,
        draw: Draw,
        reading: Reading,
        multipliers: Tensor,
        *,
        samples: Tensor | None,
        outputs: Sequence[Tensor],
    ) -> None:
        controller = self._controller
        rows = reading.rows if controller.observing else None
        if controller.observing and self._adapting:
            self._check_supplied(rows)
        expected = controller.expected_tokens(draw)
        factors = reading.factors(expected, parts=self._accumulation)
        terms = None if rows is None or "noise" not in controller.requires else rows.noise
        told: dict[str, Any] = {
            "factors": multipliers * factors,
            "losses": None if rows is None else rows.values.detach(),
            "mask": reading.mask if rows is None else rows.mask,
            "noise": None if terms is None else terms(None),
            "samples": samples,
            "outputs": outputs,
        }
        try:
            controller.observe(loss, draw=draw, **told)
        except ObjectiveError as error:
            if self._adapting:
                raise
            self._leave_unknown(error)
            controller.observe(loss, draw=draw, **told)

    def _loss_inputs(self, loss: Tensor, seen: Seen, draw: Draw) -> LossInputs:
        rows = self._blocks * len(draw)
        by_row = seen.of_rows(rows) if draw.segments is None else seen.of_positions(draw.segments)
        loss_inputs = find_loss_inputs(loss, by_row, kept=seen.auxiliary)
        if not loss_inputs.tensors:
            proofs.refuse_unseen(loss, seen, len(draw), self._blocks)
        return loss_inputs

    def _check_supplied(self, rows: RowLosses | None) -> None:
        """Check that the loss tells what the policy goes by.

        Raises:
            MissingStatisticError: it does not.
        """
        if self._policy is None:
            return  # one that can do without is chosen
        requires = self._controller.requires
        missing = [name for name in sorted(requires) if name.startswith("loss") and rows is None]
        if "noise" in requires and (rows is None or rows.noise is None):
            missing.append("noise")
        if missing:
            raise MissingStatisticError(
                f"policy={self._policy!r} needs {' and '.join(missing)} of rows, and this "
                f"trainer's loss does not show them. {known.losses_known(self._trainer)} Use "
                'AdaptMixCallback(policy="variance_aware"), which goes by gradients.'
            )

    def check_step(self) -> None:
        """After the backward passes of a step: check that they were of the stated loss.

        Raises:
            ObjectiveError: there was no loss, it was not differentiated once, or it was scaled in
                the first step; or another process refuses something.
            MissingStatisticError: as in a call.
        """
        with self._refusals.kept():
            self._check_arrived()
        self._refusals.settle()

    def _check_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        if not self._computed:
            refuse_uncomputed()
        self._computed = False
        first, self._first = self._first, None
        if first is not None and self._adapting:
            first.check(internals.backward_scale(self._trainer))
        for loss_inputs, numbers in arrived:
            if set(numbers) != set(range(len(loss_inputs.tensors))) or len(numbers) > len(
                loss_inputs.uses
            ):
                raise ObjectiveError(
                    "The loss that compute_loss returns must be differentiated once; got "
                    f"{len(numbers)} gradients for {len(loss_inputs.uses)} uses of the model's "
                    "outputs in it. Do not replace the loss in training_step, nor differentiate it "
                    "twice."
                )

    def remove(self) -> None:
        """Give the model back as it was."""
        self._capture.remove()


def _loss(result: Any) -> Tensor:
    loss: Tensor = result[0] if isinstance(result, tuple) else result
    return loss
