"""Which of the ways to weight a run takes."""

from __future__ import annotations

from transformers import Trainer

from adaptmix import Controller
from adaptmix_transformers import internals
from adaptmix_transformers.pairs import PairWeighting
from adaptmix_transformers.reading import RowReader
from adaptmix_transformers.setup import Settings
from adaptmix_transformers.weighting import HeadWeighting, Weighting

AnyWeighting = Weighting | HeadWeighting | PairWeighting


def make_weighting(trainer: Trainer, controller: Controller, settings: Settings) -> AnyWeighting:
    """Return how a trainer's loss is weighted: at a named head, by pairs, or by rows' losses.

    Raises:
        SeamError: a preference loss that is no mean over pairs.
        ValueError: a head that the model does not have.
    """
    if settings.head is not None:
        return HeadWeighting(trainer, controller, settings.head)
    if settings.loss is None and internals.is_a(trainer, "DPOTrainer"):
        return PairWeighting(trainer, controller)
    reader = RowReader(trainer, settings.loss)
    return Weighting(trainer, controller, reader, adapting=settings.mode == "adapt")
