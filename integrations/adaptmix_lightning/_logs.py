"""Weight trajectories in the loggers that a Trainer has."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from adaptmix import Controller
from adaptmix.trainers import PREFIX, Coverage, TrainerBoard, WarnOnce, tolerant


def begin(
    trainer: Trainer, controller: Controller, coverage: Coverage | None, warn: WarnOnce
) -> list[TrainerBoard]:
    """Lay out the charts in loggers that write for TensorBoard; warn when that fails.

    Returns:
        The boards of these loggers.
    """
    boards = []
    observing = controller.configuration["mode"] == "observe"
    for logger in trainer.loggers:
        with tolerant(warn):
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_custom_scalars"):
                board = TrainerBoard(
                    writer,
                    controller.mixture.domains,
                    step=controller.completed,
                    observing=observing,
                    coverage=coverage,
                )
                boards.append(board)
    write_texts(boards, controller, warn)
    return boards


def write_texts(boards: list[TrainerBoard], controller: Controller, warn: WarnOnce) -> None:
    """Write configuration and warnings, as far as they are new; warn when that fails."""
    for board in boards:
        with tolerant(warn):
            board.write_texts(controller.completed, controller.configuration, controller.warnings)


def write(
    trainer: Trainer, boards: list[TrainerBoard], controller: Controller, warn: WarnOnce
) -> None:
    """Log every ``log_every_n_steps``, at the number of optimizer steps taken; warn on failure."""
    every = int(getattr(trainer, "log_every_n_steps", 0))
    if not trainer.loggers or not every or trainer.global_step % every:
        return
    scalars = controller.scalars()
    values = {f"{PREFIX}{tag}": value for tag, value in scalars.items()}
    for logger in trainer.loggers:
        with tolerant(warn):
            logger.log_metrics(values, step=trainer.global_step)
    for board in boards:
        with tolerant(warn):
            board.write(trainer.global_step, scalars)
