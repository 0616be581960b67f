"""Reads every row's own loss off a forward pass: which seam shows it is found out and said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Trainer

from adaptmix.errors import SeamError
from adaptmix_transformers import internals
from adaptmix_transformers.rows import Match, RowLosses, find_rule
from adaptmix_transformers.seams import Seen

_log = logging.getLogger("adaptmix")

UserLoss = Callable[[Any, Mapping[str, Any]], Tensor | tuple[Tensor, Tensor]]
NumItems = Tensor | int | None


@dataclass(frozen=True, eq=False)
class Reading:
    """What a forward pass and the trainer's ``compute_loss`` amount to.

    Attributes:
        rows: the rows' losses.
        rest: what the trainer's loss has beside them, such as a model's auxiliary loss.
        scale: what the trainer multiplies the model's loss by, beyond averaging.
    """

    rows: RowLosses
    rest: Tensor | float = 0.0
    scale: Tensor | float = 1.0


class RowReader:
    """Finds rows' losses, by the first of four ways that there is; proves the way at first use.

    The user's own losses; TRL's log-probabilities; logits and labels of the model's
    ``loss_function``; logits and labels of the model. The last two are matched against the loss
    that the trainer would train on, and refused if they do not give it.

    Args:
        trainer: of the run.
        user_loss: of ``AdaptMixCallback(loss=...)``, or None.
    """

    def __init__(self, trainer: Trainer, user_loss: UserLoss | None) -> None:
        self._trainer, self._user_loss = trainer, user_loss
        self._match: Match | None = None
        self.way = ""

    @property
    def found(self) -> bool:
        """Whether a way is found, so that the trainer's own loss is no longer needed."""
        return bool(self.way)

    def number(self, rows: RowLosses, num_items: NumItems) -> Any:
        """Return what the sum of a micro-batch's losses is divided by, on average of processes."""
        if (self._match is not None and not self._match.counted) or num_items is None:
            return rows.tokens.sum().clamp(min=1)
        return num_items / internals.world_factor(self._trainer, num_items)

    def read(
        self, loss: Tensor, seen: Seen, given: Mapping[str, Any], num_items: NumItems
    ) -> Reading:
        """Read one forward pass.

        Args:
            loss: what the trainer's ``compute_loss`` returned.
            seen: what the seams saw meanwhile.
            given: the inputs it was called with.
            num_items: supervised tokens of the step, where the trainer counts them.

        Raises:
            SeamError: no way shows the rows' losses, or none that is trained on.
        """
        coefficient = seen.coefficient(loss)
        if self._user_loss is not None:
            self._say("the losses of AdaptMixCallback(loss=...)")
            losses = self._user_loss(seen.outputs, given)
            return Reading(RowLosses(*losses) if isinstance(losses, tuple) else RowLosses(losses))
        if seen.log_probs is not None and internals.is_a(self._trainer, "SFTTrainer"):
            return self._log_probs(loss, seen, coefficient, num_items)
        if seen.given is not None and (coefficient is not None or seen.leaf is None):
            rows = self._matched(seen.given, loss if seen.leaf is None else seen.leaf, num_items)
            self._say("the model's loss_function")
            if coefficient is None or seen.leaf is None:
                return Reading(rows)
            world = internals.world_factor(self._trainer, num_items)
            return Reading(rows, loss - (coefficient * seen.leaf).detach(), coefficient / world)
        logits = getattr(seen.outputs, "logits", None)
        if isinstance(logits, Tensor) and isinstance(given.get("labels"), Tensor):
            rows = self._matched(
                {**given, "logits": logits, "label_smoothing": internals.smoothing(self._trainer)},
                loss / internals.world_factor(self._trainer, num_items),
                num_items,
            )
            self._say("the model's logits and labels")
            return Reading(rows)
        names = ", ".join(seen.outputs) if hasattr(seen.outputs, "keys") else "no mapping"
        raise SeamError(
            "No seam shows the rows' own losses: the model calls no loss_function with logits and "
            f"labels, and its outputs are {names}. {_WAY_OUT}"
        )

    def _log_probs(
        self, loss: Tensor, seen: Seen, coefficient: Tensor | None, num_items: NumItems
    ) -> Reading:
        self._say("the log-probabilities of TRL's fused head")
        mask = seen.outputs.label_mask.bool()
        log_probs: Any = seen.log_probs
        if coefficient is None or seen.leaf is None:
            return Reading(RowLosses(-log_probs, mask))
        rows = RowLosses(log_probs, mask)
        # What the trainer's loss makes of each token: −1 for the likelihood, other for DFT.
        values = log_probs * (coefficient * self.number(rows, num_items)).detach()
        return Reading(RowLosses(values, mask), loss - (coefficient * seen.leaf).sum().detach())

    def _matched(self, given: Mapping[str, Any], native: Tensor, num_items: NumItems) -> RowLosses:
        if self._match is None:
            counted = None if num_items is None else float(num_items)
            match, tried = find_rule(given, float(native.detach()), num_items=counted)
            if match is None:
                raise SeamError(f"No rule gives the loss that is trained on: {tried}. {_WAY_OUT}")
            self._match = match
        return self._match.rule(given["logits"], given)

    def _say(self, way: str) -> None:
        if not self.way:
            rule = "" if self._match is None else f" ({self._match.rule.__name__})"
            self.way = way + rule
            _log.info("Rows' losses are read off %s.", self.way)


_WAY_OUT = (
    "Pass AdaptMixCallback(loss=f) with f(outputs, inputs) returning unreduced losses, (B,) or "
    '(B, T), or AdaptMixCallback(head="name of the module that makes the logits").'
)
