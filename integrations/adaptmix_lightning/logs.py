"""Weight trajectories in the loggers that a Trainer has."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from adaptmix import Controller, Coverage
from adaptmix.tensorboard import PREFIX, RecordTexts, lay_out


def begin(trainer: Trainer, controller: Controller, coverage: Coverage | None) -> list[RecordTexts]:
    """Lay out the charts in loggers that write for TensorBoard; returns what writes their texts."""
    texts = []
    for logger in trainer.loggers:
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_custom_scalars"):
            observing = controller.configuration["mode"] == "observe"
            lay_out(writer, controller.mixture.domains, observing=observing, coverage=coverage)
            texts.append(RecordTexts(writer))
    tell(texts, controller)
    return texts


def tell(texts: list[RecordTexts], controller: Controller) -> None:
    """Write configuration and warnings, as far as they are new."""
    for text in texts:
        text.write(controller.completed, controller.configuration, controller.warnings)


def write(trainer: Trainer, controller: Controller) -> None:
    """Log every ``log_every_n_steps``, at the number of optimizer steps taken."""
    every = int(getattr(trainer, "log_every_n_steps", 0))
    if not trainer.loggers or not every or trainer.global_step % every:
        return
    values = {f"{PREFIX}{tag}": value for tag, value in controller.scalars().items()}
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
