"""Makes a LightningModule's loss the stated objective, through the training step it has."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from adaptmix import Controller, Draw
from adaptmix.errors import ObjectiveError
from adaptmix.noise import NoiseTerms
from adaptmix.trainers import (
    BackwardProof,
    Refusals,
    Watch,
    WeightedHead,
    refusing_moved_rows,
    tensors_of,
)
from adaptmix_lightning import _internals as internals
from adaptmix_lightning._head import HeadProof
from adaptmix_lightning._loader import PlannedLoader
from adaptmix_lightning._rehearsal import rehearse

_log = logging.getLogger("adaptmix")
_ADVICE = (
    'Return unreduced losses, (B,) or (B, T), from training_step (reduction="none"), or name the '
    'module that makes the logits: AdaptMixCallback(..., head="name").'
)


class Weighting:
    """Weights the loss of every batch that is trained; made anew for every ``fit``.

    Args:
        trainer: of the run.
        module: whose ``training_step`` makes the losses.
        controller: of the run.
        loader: knows how batches were drawn.
        adapting: whether losses are weighted, and not only looked at.
        head: name of the module to weight rows at, or None.
        accumulation: batches of an optimizer step.
        watch: returns the gradient probe's handle; None where there is none.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        controller: Controller,
        loader: PlannedLoader,
        *,
        adapting: bool,
        head: str | None,
        accumulation: int,
        watch: Callable[[], Watch | None],
    ) -> None:
        self._watch = watch
        self._unknown = False
        self._trainer, self._module = trainer, module
        self._controller, self._loader = controller, loader
        self._adapting, self._accumulation = adapting, accumulation
        self._head = None if head is None else WeightedHead(module, head)
        self._head_proof = None if head is None else HeadProof(controller, head)
        self._proof: BackwardProof | None = BackwardProof()
        self._draw: Draw | None = None
        self._factors: Tensor | None = None
        self._rehearsed = not adapting
        self._coupled: ObjectiveError | None = None
        self._refusals = Refusals(controller)
        self.recorded = 0

    def begin(
        self, native: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Take up the next batch, before its forward pass.

        Args:
            native: the module's own ``training_step``.
            args: of it.
            kwargs: of it.

        Raises:
            ObjectiveError: there is none.
        """
        self._draw = self._loader.take()
        if self._head is not None or not self._adapting:
            self._factors = self._controller.multipliers(self._draw)
        if not self._rehearsed and self._module.automatic_optimization:
            self._rehearsed = True
            self._rehearse(native, args, kwargs, rows=len(self._draw))
        if self._head is not None and self._factors is not None:
            self._head.open(self._factors)

    def _rehearse(
        self,
        native: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        rows: int,
    ) -> None:
        """Before the first batch, look whether rows' losses depend on each other.

        What the batch itself shows is said first, for that is more to the point.
        """
        watch = self._watch()
        with nullcontext() if watch is None else watch.aside():
            self._coupled = rehearse(
                native, args, kwargs, module=self._module, head=self._head, rows=rows
            )

    @contextmanager
    def watching(self, batch: Any) -> Iterator[None]:
        """Watch the forward pass of a batch, in the first step and in observed ones.

        Raises:
            ObjectiveError: its rows are put into another order before the module sees them.
        """
        controller, draw = self._controller, self._draw
        if draw is None or not (controller.observing or controller.completed == 0):
            yield
            return
        done = False
        try:
            with refusing_moved_rows(self._module, list(tensors_of(batch)), len(draw)):
                yield
                done = True
        except ObjectiveError as error:
            if not done:  # raised by what is watched
                raise
            with self._refusals.kept():
                self._refuse(error)

    def _refuse(self, error: ObjectiveError) -> None:
        """Stop where losses are weighted; where they are only looked at, measure nothing more.

        Raises:
            ObjectiveError: the error.
        """
        if self._adapting:
            raise error
        if not self._unknown:
            self._unknown = True
            _log.warning("Nothing is measured of this loss, which is trained as it is: %s", error)
        watch = self._watch()
        if watch is not None:
            watch.remove()

    def loss(
        self, losses: Tensor, *, mask: Tensor | None, noise: NoiseTerms | Tensor | None
    ) -> Tensor:
        """Return the weighted scalar of the batch, as large as Lightning expects it.

        Raises:
            ObjectiveError: there is no batch to weight, or it is weighted elsewhere already.
        """
        if self._draw is None or self._head is not None:
            raise ObjectiveError(
                "The loss of a batch must be weighted once, and in training_step; got it "
                f"{'outside of it or again' if self._draw is None else 'with head= too'}."
            )
        self._refuse_coupled()
        draw, self._draw, self._factors = self._draw, None, None
        if self._unknown:
            total = (losses if mask is None else losses[mask.bool()]).mean() / self._accumulation
            each = torch.full((len(draw),), 1.0 / (len(draw) * self._accumulation))
            self._controller.observe(total, draw=draw, factors=each)
        else:
            total = self._controller.loss(losses, draw=draw, mask=mask, noise=noise)
        if self._proof is not None:
            self._proof.watch(total)
        self.recorded += 1
        return total * self._accumulation if self._module.automatic_optimization else total

    def output(self, output: Any) -> Any:
        """Return what ``training_step`` returned, with per-sample losses weighted and reduced.

        Raises:
            ObjectiveError: rows' losses are neither there nor weighted at a head.
        """
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if self._draw is None or not self._module.automatic_optimization:
            return output
        if not isinstance(loss, Tensor):
            raise ObjectiveError(
                f"training_step must return a loss for every batch; got {type(loss).__name__}. "
                "A batch that is left out would leave its domains out too."
            )
        if loss.ndim == 0:
            self._check_scalar()
            return output
        if not isinstance(output, Mapping):
            return self.loss(loss, mask=None, noise=None)
        options = {"mask": output.get("loss_mask"), "noise": output.get("noise")}
        return {**output, "loss": self.loss(loss, **options)}

    def before_backward(self, loss: Tensor) -> None:
        """Record a scalar loss whose rows are weighted on the way back.

        Args:
            loss: () what is differentiated: a mean over rows, divided by the accumulation and
                multiplied by mixed precision's scale.

        Raises:
            ObjectiveError: its rows are not weighted.
        """
        if self._draw is None:
            return
        self._check_scalar()
        outputs: list[Tensor] = []
        if self._head is not None and not self._unknown:
            try:
                outputs = [self._proved_output(loss, len(self._draw))]
            except ObjectiveError as error:
                with self._refusals.kept():
                    self._refuse(error)
        self._refuse_coupled()
        draw, factors = self._draw, self._factors
        assert factors is not None
        self._draw = self._factors = None
        scale = internals.backward_scale(self._trainer) / (len(draw) * self._accumulation)
        self._controller.observe(loss, draw=draw, factors=factors * scale, outputs=outputs)
        if self._head is not None:
            self._head.forget_backward()  # of the probe's proof
        self.recorded += 1

    def _proved_output(self, loss: Tensor, rows: int) -> Tensor:
        """Return the head's output, once the loss is proved to be a mean of one term per row.

        Raises:
            ObjectiveError: it is not.
        """
        assert self._head is not None
        assert self._head_proof is not None
        output = self._head.close()
        watch = self._watch()
        with nullcontext() if watch is None else watch.aside():
            self._head_proof.check(loss, output, rows)
        self._head.forget_backward()
        return output  # rows' losses come from there; a penalty need not

    def _refuse_coupled(self) -> None:
        if self._coupled is not None:
            with self._refusals.kept():
                raise self._coupled

    def _check_scalar(self) -> None:
        if self._head is None and self._adapting:
            raise ObjectiveError(f"A loss that is a mean does not show its rows. {_ADVICE}")

    def before_optimizer_step(self) -> None:
        """Check that the gradients of the first step are those of the stated loss.

        Raises:
            ObjectiveError: they are not, or another process refuses something.
        """
        proof, self._proof = self._proof, None
        if proof is not None:
            try:
                proof.check(internals.backward_scale(self._trainer))
            except ObjectiveError as error:
                with self._refusals.kept():
                    self._refuse(error)
        self._refusals.settle()

    def finish_batch(self, *, optimizer_steps: int) -> bool:
        """Check the batch that was trained; returns whether it was the last of an optimizer step.

        Args:
            optimizer_steps: how often the optimizer has stepped since the last batch.

        Raises:
            ObjectiveError: rows that were not weighted, or steps that are not the plan's.
        """
        if self._draw is not None:
            raise ObjectiveError(
                "Every batch must be differentiated with its rows weighted; got one that was not. "
                "With manual optimization, pass unreduced losses to callback.loss(losses) and what "
                "it returns to manual_backward."
            )
        if self._head is not None and not self._unknown:
            try:
                self._head.check_backward()
            except ObjectiveError as error:
                self._refuse(error)
        due = self.recorded == self._accumulation
        if optimizer_steps != due:
            raise ObjectiveError(
                f"The optimizer must step once in {self._accumulation} batches; after "
                f"{self.recorded} it stepped {optimizer_steps} times. With manual optimization, "
                "say AdaptMixCallback(accumulation=...)."
            )
        self.recorded = 0 if due else self.recorded
        return due

    def remove(self) -> None:
        """Take the head's hook off."""
        if self._head is not None:
            self._head.remove()


def wrap_training_step(module: Any, step: Callable[..., Any]) -> Callable[[], None]:
    """Put ``step(native, *args, **kwargs)`` in the place of ``training_step``; returns the undo."""
    native = module.training_step
    own = vars(module).get("training_step")

    @functools.wraps(native)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        return step(native, *args, **kwargs)

    def undo() -> None:
        if own is None:
            del module.training_step
        else:
            module.training_step = own

    module.training_step = training_step
    return undo


def reduced(output: Any) -> Any:
    """Return a training step's output with per-sample losses averaged, as without AdaptMix."""
    if isinstance(output, Mapping):
        return {key: reduced(value) if key == "loss" else value for key, value in output.items()}
    return output.mean() if isinstance(output, Tensor) else output
