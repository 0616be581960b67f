"""Weighting of preference pairs, as TRL's DPOTrainer trains on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from adaptmix import Controller, Draw
from adaptmix.errors import SeamError
from adaptmix.seams import scale_rows

_log = logging.getLogger("adaptmix")
# Means of one term per pair. The others compare pairs with each other, or count tokens.
_SEPARABLE = frozenset(
    {
        *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "sppo_hard"),
        *("apo_zero", "apo_down", "discopop", "sigmoid_norm"),
    }
)


class PairWeighting:
    """Leaves a preference loss as it is, and weights each pair's gradient at its log-probabilities.

    Args:
        trainer: a ``DPOTrainer``.
        controller: of the run; its unit is "sample", a sample being a pair.

    Raises:
        SeamError: a loss that is no mean of one term per pair.
    """

    def __init__(self, trainer: Trainer, controller: Controller) -> None:
        self._controller = controller
        kinds = set(getattr(trainer, "loss_types", ()))
        if kinds - _SEPARABLE:
            raise SeamError(
                f"loss_type must be a mean of one term per pair: one of "
                f"{', '.join(sorted(_SEPARABLE))}; got {', '.join(sorted(kinds - _SEPARABLE))}."
            )
        _log.info("Pairs' gradients are weighted at their log-probabilities.")

    def __call__(
        self,
        native: Callable[[], Any],
        model: nn.Module,
        inputs: Mapping[str, Any],
        draw: Draw,
        num_items: Tensor | int | None,
    ) -> Any:
        """Return what ``native()`` returns; the arguments are those of ``Weighting``.

        Raises:
            SeamError: the forward pass showed no log-probabilities.
            ValueError: they are not those of the pairs that were drawn.
        """
        factors = self._controller.multipliers(draw)
        weighted = []

        def on_forward(_: nn.Module, __: Any, outputs: Any) -> Any:
            log_probs = getattr(outputs, "log_probs", None)
            if torch.is_grad_enabled() and isinstance(log_probs, Tensor):
                # The chosen answers come first, then the rejected ones.
                both = factors.repeat(2).to(log_probs.device, non_blocking=True)
                outputs.log_probs = scale_rows(log_probs, both)
                weighted.append(outputs.log_probs)
            return outputs

        handle = model.register_forward_hook(on_forward)
        try:
            result = native()
        finally:
            handle.remove()
        if len(weighted) != 1:
            raise SeamError(
                f"The model must show log_probs once per micro-batch; got {len(weighted)} times. "
                "Use a TRL release that AdaptMixCallback is tested with."
            )
        loss = result[0] if isinstance(result, tuple) else result
        self._controller.observe(loss, draw, factors=factors / len(draw))
        return result

    def check_step(self) -> None:
        """Do nothing: the probe checks its own backward passes, and the seam each forward pass."""

    def remove(self) -> None:
        """Do nothing: hooks are taken off after each forward pass."""
