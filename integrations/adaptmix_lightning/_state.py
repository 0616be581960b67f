"""What Lightning's checkpoints hold of AdaptMix."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from adaptmix import Controller
from adaptmix.errors import FreshStartWarning, StateError

_UNFINISHED = "unfinished_step"


def of(controller: Controller, *, unfinished: bool) -> dict[str, Any]:
    """Return the controller's state, or between the batches of a step, that there is none."""
    return {_UNFINISHED: controller.completed} if unfinished else controller.state_dict()


def load(controller: Controller, state: Mapping[str, Any]) -> None:
    """Let a controller go on from what ``of`` returned.

    Raises:
        StateError: the checkpoint is of an unfinished step, or the controller refuses it.
    """
    if _UNFINISHED in state:
        raise StateError(
            f"The checkpoint must be of a finished optimizer step; this one is of the middle "
            f"of step {state[_UNFINISHED]}, whose gradients Lightning does not save. Use "
            "another one, or save with ModelCheckpoint(every_n_train_steps=...)."
        )
    controller.load_state_dict(state)


def warn_of_fresh_start() -> None:
    """Say that the trainer goes on, and adaptmix begins."""
    warnings.warn(
        "The run goes on without a state of AdaptMix, so weights and statistics start "
        "from the beginning.",
        FreshStartWarning,
        stacklevel=3,
    )
