"""Weight trajectories in the loggers that a Trainer has."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from adaptmix import Controller
from adaptmix.trainers import PREFIX, Coverage, RecordTexts, WarnOnce, lay_out, tolerant


def begin(
    trainer: Trainer, controller: Controller, coverage: Coverage | None, warn: WarnOnce
) -> list[RecordTexts]:
    """Lay out the charts in loggers that write for TensorBoard; warn when that fails.

    Returns:
        What writes the texts of these loggers.
    """
    texts = []
    observing = controller.configuration["mode"] == "observe"
    for logger in trainer.loggers:
        with tolerant(warn):
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_custom_scalars"):
                lay_out(writer, controller.mixture.domains, observing=observing, coverage=coverage)
                texts.append(RecordTexts(writer))
    tell(texts, controller, warn)
    return texts


def tell(texts: list[RecordTexts], controller: Controller, warn: WarnOnce) -> None:
    """Write configuration and warnings, as far as they are new; warn when that fails."""
    for text in texts:
        with tolerant(warn):
            text.write(controller.completed, controller.configuration, controller.warnings)


def write(trainer: Trainer, controller: Controller, warn: WarnOnce) -> None:
    """Log every ``log_every_n_steps``, at the number of optimizer steps taken; warn on failure."""
    every = int(getattr(trainer, "log_every_n_steps", 0))
    if not trainer.loggers or not every or trainer.global_step % every:
        return
    values = {f"{PREFIX}{tag}": value for tag, value in controller.scalars().items()}
    for logger in trainer.loggers:
        with tolerant(warn):
            logger.log_metrics(values, step=trainer.global_step)
