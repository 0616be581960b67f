"""What a run shows in the loggers that a Trainer has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Trainer

from adaptmix import Controller
from adaptmix.trainers import PREFIX, Coverage, TrainerBoard, WarnOnce, tolerant
from adaptmix_transformers import _internals as internals


class Logs:
    """Adds a run's scalars to the trainer's, and lays out charts in its TensorBoard logger."""

    def __init__(self) -> None:
        self._board: TrainerBoard | None = None
        self._warn = WarnOnce()

    def begin(self, trainer: Trainer, controller: Controller, coverage: Coverage | None) -> None:
        """Lay out the charts, where the trainer logs to TensorBoard; warn when that fails."""
        writer, self._board = internals.tensorboard_writer(trainer), None
        if writer is not None:
            with tolerant(self._warn):
                self._board = TrainerBoard(
                    writer,
                    controller.mixture.domains,
                    step=trainer.state.global_step,
                    prefix="train/",
                    heldout="eval/loss_",  # what the trainer makes of "eval_loss_<domain>"
                    observing=controller.configuration["mode"] == "observe",
                    coverage=coverage,
                )
        self.write_texts(controller, trainer.state.global_step)

    def write(self, controller: Controller, step: int) -> dict[str, float]:
        """Chart the domains' scalars.

        Returns:
            All scalars, for the trainer to log.
        """
        self.write_texts(controller, step)
        scalars = controller.scalars()
        if self._board is not None:
            with tolerant(self._warn):
                self._board.write(step, scalars)
        return {f"{PREFIX}{tag}": value for tag, value in scalars.items()}

    def write_evaluation(
        self, controller: Controller, step: int, metrics: Mapping[str, Any]
    ) -> None:
        """Chart the held-out losses of the domains that were evaluated."""
        keys = {name: f"eval_loss_{name}" for name in controller.mixture.domains}
        losses = {name: metrics[key] for name, key in keys.items() if key in metrics}
        if self._board is not None and losses:
            with tolerant(self._warn):
                self._board.write_evaluation(step, losses)

    def write_texts(self, controller: Controller, step: int) -> None:
        """Write configuration and warnings, as far as they are new."""
        if self._board is not None:
            with tolerant(self._warn):
                self._board.write_texts(step, controller.configuration, controller.warnings)
