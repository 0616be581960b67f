"""Reads rows' losses off the gradient of the trainer's own: for reports, and for its divisor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from adaptmix import Segments
from adaptmix.errors import ObjectiveError
from adaptmix.trainers import LossInputs
from adaptmix_transformers import _internals as internals
from adaptmix_transformers._capture import Seen
from adaptmix_transformers._heads import chunked_head
from adaptmix_transformers._recognition import Recognised, recognise
from adaptmix_transformers._rows import RowLosses, Rule, supervised
from adaptmix_transformers._user_losses import proved

_log = logging.getLogger("adaptmix")

UserLoss = Callable[[Any, Mapping[str, Any]], Tensor | tuple[Tensor, Tensor]]
NumItems = Tensor | int | None


@dataclass(frozen=True, eq=False)
class Reading:
    """What is known of the rows of a micro-batch's loss.

    Attributes:
        size: B.
        per_token: whether the objective averages over tokens.
        mask: which losses are supervised, (B,) or (B, T); all, one per row, when None.
        number: what the loss divides the sum of rows' losses by; None where rows have factors of
            the loss's own, which are kept as they are.
        counted: whether the loss's divisor is of the whole step, not of this micro-batch.
        scale: what the loss multiplies their mean by, where that was measured.
        rows: unweighted losses; None where they are not known, or not looked at.
    """

    size: int
    per_token: bool
    mask: Tensor | None = None
    number: Tensor | float | None = None
    counted: bool = False
    scale: float = 1.0
    rows: RowLosses | None = None

    def multipliers(self, multipliers: Tensor, expected: float, *, parts: float) -> Tensor:
        """Return what to multiply rows' gradients by, (B,).

        A loss that divides by the number of tokens divides by what was drawn; the objective
        divides by what is drawn on average. Other losses keep their divisors.

        Args:
            multipliers: (B,) of ``Controller.multipliers``.
            expected: of ``Controller.expected_tokens``.
            parts: micro-batches of a step, over what its gradient is divided by afterwards.
        """
        if self.number is None:
            return multipliers if self.counted else multipliers / parts
        ratio = self.number / (self.size * parts * expected)
        if isinstance(ratio, Tensor):
            multipliers = multipliers.to(ratio.device, non_blocking=True)
        tokens = self._tokens
        if self.per_token or tokens is None:
            return multipliers * ratio
        return multipliers.to(tokens.device, non_blocking=True) * ratio / tokens.clamp(min=1)

    def factors(self, expected: float, *, parts: int) -> Tensor | float:
        """Return what the loss multiplies each row's own loss by, (B,) or one for all.

        Args:
            expected: as in ``multipliers``.
            parts: micro-batches of a step.
        """
        if self.number is None:
            return 1.0 / (self.size * expected * (parts if self.counted else 1))
        each = self.scale / self.number
        tokens = self._tokens
        return each if self.per_token or tokens is None else tokens * each

    @property
    def _tokens(self) -> Tensor | None:
        return None if self.mask is None else self.mask.reshape(self.size, -1).sum(1)


class Reader:
    """Recognises rows' losses in measured steps, and knows their labels in the others.

    Args:
        trainer: of the run.
        unit: of the objective.
        user_loss: of ``AdaptMixCallback(loss=...)``, or None.
    """

    def __init__(self, trainer: Trainer, *, unit: str, user_loss: UserLoss | None) -> None:
        self._trainer, self._user_loss = trainer, user_loss
        self.per_token = unit == "token"
        self._counted: bool | None = None
        self._decided = False
        self._generic = True
        self._one_a_row = True
        self.asks = False  # whether it is to be seen yet what the loss divides by
        self.by_step: bool | None = None  # whether it is known to divide by the step's tokens
        self.rule: Rule | None = None

    def generalise(
        self,
        seen: Seen,
        loss_inputs: LossInputs,
        gradients: Sequence[Tensor],
        given: Mapping[str, Any],
    ) -> None:
        """Note from labels of all classes whether rows have factors of the loss's own.

        Args:
            seen: as in ``read``.
            loss_inputs: as in ``read``.
            gradients: as in ``read``.
            given: as in ``read``.
        """
        self._generic = self.scale(seen, loss_inputs, gradients, given) is not None

    def scale(
        self,
        seen: Seen,
        loss_inputs: LossInputs,
        gradients: Sequence[Tensor],
        given: Mapping[str, Any],
    ) -> float | None:
        """Return the one factor that a loss has for all rows' losses; None where not known.

        Args:
            seen: as in ``read``.
            loss_inputs: as in ``read``.
            gradients: as in ``read``.
            given: as in ``read``.
        """
        found = self._look(seen, loss_inputs, gradients, self._given(seen, given))[1]
        return None if found is None else found.common

    def read(
        self,
        seen: Seen,
        loss_inputs: LossInputs | None,
        gradients: Sequence[Tensor],
        given: Mapping[str, Any],
        num_items: NumItems,
        *,
        size: int,
        segments: Segments | None = None,
    ) -> Reading:
        """Read one micro-batch.

        Args:
            seen: what its forward pass showed.
            loss_inputs: of its loss; None where it is not looked at.
            gradients: of its loss there; none in steps that are not measured.
            given: the inputs of ``compute_loss``.
            num_items: supervised tokens of the step, where the trainer counts them.
            size: B.
            segments: where rows are packed; None where they are not.

        Raises:
            ObjectiveError: rows' losses are not those of ``loss=f``, or no longer what they were.
        """
        given = self._given(seen, given)
        rows: RowLosses | None = None
        found: Recognised | None = None
        if loss_inputs is not None and any(bool(part.any()) for part in gradients):
            rows, found = self._look(seen, loss_inputs, gradients, given)
            if segments is not None and rows is not None and found is not None:
                rows, found = rows.unpacked(segments), found.unpacked(segments)
            self._decide(rows, found, seen, num_items)
        elif self._user_loss is not None:
            with torch.no_grad():
                rows = self._users(seen, given)
        mask = supervised(self.rule, given, segments) if rows is None else rows.mask
        if mask is not None and len(mask) != size:
            mask = rows = None  # rows were merged, which only observing gets past
        number = self._number(mask, size, num_items) if self._counted is not None else None
        scale = 1.0
        if number is not None and found is not None and found.common is not None:
            scale = found.common * float(number)
        if found is None:
            rows = None
        elif rows is not None and number is None:
            rows = self._as_weighted(rows, found, size)
        counted = bool(self._is_by_step(seen) if self._counted is None else self._counted)
        return Reading(size, self.per_token, mask, number, counted, scale=scale, rows=rows)

    def _look(
        self,
        seen: Seen,
        loss_inputs: LossInputs,
        gradients: Sequence[Tensor],
        given: Mapping[str, Any],
    ) -> tuple[RowLosses | None, Recognised | None]:
        if self._user_loss is not None:
            rows = self._users(seen, given)
            return rows, proved(rows, loss_inputs, gradients)
        if len(loss_inputs.tensors) != 1:
            return None, None
        (tensor,), (gradient,) = loss_inputs.tensors, gradients
        found = recognise(tensor, gradient, given)
        if found is None or found.rule is None:
            return None, None
        with torch.no_grad():
            return found.rule(tensor.detach(), given), found

    def _decide(
        self, rows: RowLosses | None, found: Recognised | None, seen: Seen, num_items: NumItems
    ) -> None:
        """Choose the loss's divisor once, and check it ever after."""
        common = None if found is None or rows is None else found.common
        counted = None
        if rows is not None:
            whole = rows.mask is None or bool(rows.mask.all())
            self._one_a_row &= whole and rows.values.ndim == 1
        if rows is not None and common is not None and self._generic:
            counted = self._divisor(rows, common, seen, num_items)
        if not self._decided:
            self._decided, self._counted = True, counted
            self.rule = None if found is None else found.rule
            way = "AdaptMixCallback(loss=...)" if self.rule is None else self.rule.__name__
            self.say(
                "Rows' losses are not known: no rule that the package has gives their gradient."
                if found is None
                else f"Rows' losses are recognised by their gradient ({way})."
            )
        elif self._counted is not None and counted != self._counted:
            if self._one_a_row and self._counted is False and not self.per_token:
                self._counted = self.rule = None  # the objective divides by rows, as any divisor
                _log.warning("Rows' losses are not known any more: the loss has other terms now.")
                return
            raise ObjectiveError(
                "The loss must keep the divisor that it had in the first step, the number of "
                f"{'tokens of the step' if self._counted else 'losses of the micro-batch'}; its "
                "rows now have other factors. Weigh rows from the first step on, or pass "
                'AdaptMixCallback(unit="sample").'
            )

    def _divisor(
        self, rows: RowLosses, common: float, seen: Seen, num_items: NumItems
    ) -> bool | None:
        by_step = self._is_by_step(seen)
        if seen.given is not None and by_step is not None:
            return by_step
        size = len(rows.values)
        kinds = (True, False) if by_step is None else (by_step,)
        close = [
            counted
            for counted in kinds[int(num_items is None and len(kinds) > 1) :]
            if abs(common * float(self._number(rows.mask, size, num_items, counted)) - 1.0) < 1e-2
        ]
        if self._counted in close:
            return self._counted
        return close[0] if close else None

    def _is_by_step(self, seen: Seen) -> bool | None:
        """Return whether the loss divides by the tokens of the step; None where nothing tells."""
        if self.by_step is None and seen.given is not None:
            return seen.given.get("num_items_in_batch") is not None
        return self.by_step

    def _number(
        self, mask: Tensor | None, size: int, num_items: NumItems, counted: bool | None = None
    ) -> Tensor | float:
        """Return what a mean divides by, on average of processes."""
        counted = self._counted if counted is None else counted
        if counted and num_items is not None:
            world = internals.world_factor(self._trainer, num_items)
            return torch.as_tensor(num_items).double() / world
        return float(size) if mask is None else mask.sum().clamp(min=1).double()

    def _as_weighted(self, rows: RowLosses, found: Recognised, size: int) -> RowLosses:
        """Return losses with the factors that the trainer's loss has for them."""
        values = rows.values * found.factors.nan_to_num(0.0).reshape_as(rows.values) * size
        if not self.per_token and values.ndim > 1:
            values = RowLosses(values, rows.mask).totals
            return RowLosses(values, noise=rows.noise)
        return RowLosses(values, rows.mask, rows.noise)

    def _users(self, seen: Seen, given: Mapping[str, Any]) -> RowLosses:
        if self._user_loss is None:
            raise TypeError("loss must be a function; got None.")
        losses = self._user_loss(seen.outputs, given)
        values, mask = losses if isinstance(losses, tuple) else (losses, None)
        if mask is None and values.ndim > 1:
            mask = torch.ones_like(values, dtype=torch.bool)
        return RowLosses(values, mask)

    def _given(self, seen: Seen, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return given if self._user_loss is not None else complete(self._trainer, seen, given)

    def say(self, what: str) -> None:
        """Say once, in the log, what rows' losses are taken for."""
        if not self._said:
            self._said = True
            _log.info("%s", what)

    _said = False


def complete(trainer: Trainer, seen: Seen, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a loss is computed from: inputs, and what a model and its trainer add."""
    mask = getattr(seen.outputs, "label_mask", None)
    fused: dict[str, Any] = {}
    if isinstance(mask, Tensor):
        fused = {"label_mask": mask, "head": chunked_head(seen.outputs.log_probs, mask)}
    return {
        **given,
        **(seen.given or {}),
        **fused,
        "dft": getattr(trainer.args, "loss_type", None) == "dft",
        "label_smoothing": internals.smoothing(trainer),
    }
