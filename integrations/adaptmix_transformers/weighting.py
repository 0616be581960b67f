"""Makes a Trainer's loss the stated objective, by the first seam that shows rows' own losses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from adaptmix import Controller, Draw
from adaptmix.errors import SeamError
from adaptmix.seams import HeadSeam
from adaptmix_transformers import internals
from adaptmix_transformers.rows import Match, RowLosses, find_rule
from adaptmix_transformers.seams import LossFunction, Seen

_log = logging.getLogger("adaptmix")
_TOLERANCE = 1e-3

UserLoss = Callable[[Any, Mapping[str, Any]], Tensor | tuple[Tensor, Tensor]]


class Weighting:
    """Replaces the scalar that ``compute_loss`` returns; made anew for every ``train()``.

    Args:
        trainer: of the run.
        controller: of the run.
        adapting: whether the loss is weighted, and not only looked at.
        loss: the user's per-row losses, or None.
        head: name of the module to weight rows at, or None.
    """

    def __init__(
        self,
        trainer: Trainer,
        controller: Controller,
        *,
        adapting: bool,
        loss: UserLoss | None,
        head: str | None,
    ) -> None:
        self._trainer, self._controller = trainer, controller
        self._adapting, self._user_loss = adapting, loss
        self._function = LossFunction(internals.core_model(trainer))
        self._head = None if head is None else HeadSeam(internals.plain_model(trainer), head)
        self._with_noise = "noise" in controller.requires
        self._match: Match | None = None
        self._chosen = ""
        self._first: list[tuple[Tensor | float, list[Tensor]]] | None = []

    def __call__(
        self,
        native: Callable[[], Any],
        model: nn.Module,
        inputs: Mapping[str, Any],
        draw: Draw,
        num_items: Tensor | int | None,
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
        if self._head is not None:
            return self._through_head(native, draw)
        given = dict(inputs)
        with self._function.open(
            model, detach=self._adapting, evaluate=self._match is None
        ) as seen:
            result = native()
        loss = result[0] if isinstance(result, tuple) else result
        rows, unused, scale = self._rows(loss, seen, given, num_items)
        if len(rows.values) != len(draw):
            raise SeamError(
                f"The loss must have the {len(draw)} rows that were drawn; got "
                f"{len(rows.values)}. Keep rows apart: no packing, padding_free=False."
            )
        weighted = self._record(loss, rows, draw, num_items)
        if self._adapting:
            divisor = internals.loss_divisor(self._trainer, num_items)
            self._prove(weighted, scale)
            loss = weighted * (divisor * scale) + unused
        return (loss, *result[1:]) if isinstance(result, tuple) else loss

    def _record(
        self, loss: Tensor, rows: RowLosses, draw: Draw, num_items: Tensor | int | None
    ) -> Tensor:
        noise = None
        if self._with_noise and rows.noise is not None and self._controller.observing:
            noise = rows.noise()
        if self._adapting:
            return self._controller.loss(rows.values, draw, mask=rows.mask, noise=noise)
        number: Any = rows.tokens.sum()
        if self._match is not None and self._match.counted and num_items is not None:
            number = num_items / internals.world_factor(self._trainer, num_items)
        factors = torch.ones_like(rows.tokens) if self._controller.unit == "token" else rows.tokens
        self._controller.observe(
            loss, draw, factors=factors / number, losses=rows.values, mask=rows.mask, noise=noise
        )
        return loss

    def _rows(
        self,
        loss: Tensor,
        seen: Seen,
        given: dict[str, Any],
        num_items: Tensor | int | None,
    ) -> tuple[RowLosses, Tensor | float, Tensor | float]:
        """Return rows' losses, what the trainer added to them, and what it scales them by."""
        trainer = self._trainer
        world = internals.world_factor(trainer, num_items)
        coefficient = seen.coefficient(loss)
        if self._user_loss is not None:
            self._choose("the losses of AdaptMixCallback(loss=...)")
            return _user_rows(self._user_loss(seen.outputs, given)), 0.0, 1.0
        if seen.log_probs is not None:
            return self._from_log_probs(loss, seen, coefficient, num_items)
        if seen.given is not None and (coefficient is not None or not self._adapting):
            native = loss if seen.leaf is None else seen.leaf
            rows = self._matched(seen.given, native, num_items)
            self._choose(f"the model's loss_function ({rows[1]})")
            if coefficient is None or seen.leaf is None:
                return rows[0], 0.0, 1.0
            unused = loss - (coefficient * seen.leaf).detach()
            return rows[0], unused, coefficient / world
        logits = getattr(seen.outputs, "logits", None)
        if isinstance(logits, Tensor) and isinstance(given.get("labels"), Tensor):
            smoother = getattr(trainer, "label_smoother", None)
            smoothing = 0.0 if smoother is None else float(smoother.epsilon)
            given |= {"logits": logits, "label_smoothing": smoothing}
            rows = self._matched(given, loss / world, num_items)
            self._choose(f"the model's logits ({rows[1]})")
            return rows[0], 0.0, 1.0
        raise SeamError(
            "No seam shows the rows' own losses: the model has neither a loss_function that is "
            f"called, nor logits and labels; its outputs are {_names(seen.outputs)}. {_WAY_OUT}"
        )

    def _from_log_probs(
        self,
        loss: Tensor,
        seen: Seen,
        coefficient: Tensor | None,
        num_items: Tensor | int | None,
    ) -> tuple[RowLosses, Tensor | float, Tensor | float]:
        log_probs = seen.log_probs
        assert log_probs is not None
        mask = seen.outputs.label_mask.bool()
        self._choose("the log-probabilities of TRL's fused head")
        if coefficient is None or seen.leaf is None:
            return RowLosses(-log_probs, mask), 0.0, 1.0
        number: Any = mask.sum() if num_items is None else num_items
        world = internals.world_factor(self._trainer, num_items)
        # What the trainer's loss makes of each token is its own: -1 for plain likelihood.
        values = log_probs * (coefficient * number / world).detach()
        unused = loss - (coefficient * seen.leaf).sum().detach()
        return RowLosses(values, mask), unused, 1.0

    def _matched(
        self,
        given: Mapping[str, Any],
        native: Tensor,
        num_items: Tensor | int | None,
    ) -> tuple[RowLosses, str]:
        if self._match is None:
            counted = None if num_items is None else float(num_items)
            match, tried = find_rule(given, float(native.detach()), num_items=counted)
            if match is None:
                raise SeamError(f"No rule gives the loss that is trained on: {tried}. {_WAY_OUT}")
            self._match = match
        rule = self._match.rule
        return rule(given["logits"], given), rule.__name__

    def _through_head(self, native: Callable[[], Any], draw: Draw) -> Any:
        head, controller = self._head, self._controller
        assert head is not None
        factors = controller.multipliers(draw)
        head.open(factors)
        result = native()
        head.close()
        loss = result[0] if isinstance(result, tuple) else result
        controller.observe(loss, draw, factors=factors.to(loss.device) / len(draw))
        self._choose(f"row gradients at the output of {head.name!r}")
        return result

    def _choose(self, seam: str) -> None:
        if not self._chosen:
            self._chosen = seam
            _log.info("Rows are weighted through %s.", seam)

    def _prove(self, weighted: Tensor, scale: Tensor | float) -> None:
        if self._first is not None:
            arrived: list[Tensor] = []
            weighted.register_hook(arrived.append)
            self._first.append((scale, arrived))

    def check_first_step(self) -> None:
        """After the backward passes of the first step: check that they were of the stated loss.

        Raises:
            SeamError: the trainer scaled the loss, or did not differentiate it.
        """
        if self._head is not None:
            self._head.check_backward()
        first, self._first = self._first, None
        for scale, arrived in first or ():
            expected = internals.backward_scale(self._trainer) * float(scale)
            got = [float(gradient) / expected for gradient in arrived]
            if len(got) != 1 or abs(got[0] - 1.0) > _TOLERANCE:
                raise SeamError(
                    "The trainer must differentiate what compute_loss returned, once; got "
                    f"{got or 'no backward pass'} times the stated loss's gradient. If your "
                    "training_step scales or replaces the loss, leave that to compute_loss."
                )

    def remove(self) -> None:
        """Give model and trainer back as they were."""
        self._function.remove()
        if self._head is not None:
            self._head.remove()


_WAY_OUT = (
    "Pass AdaptMixCallback(loss=f) with f(outputs, inputs) returning unreduced losses, (B,) or "
    '(B, T), or AdaptMixCallback(head="name of the module that makes the logits").'
)


def _user_rows(losses: Any) -> RowLosses:
    values, mask = losses if isinstance(losses, tuple) else (losses, None)
    return RowLosses(values, mask)


def _names(outputs: Any) -> str:
    return ", ".join(outputs) if hasattr(outputs, "keys") else type(outputs).__name__
