"""What a Trainer's checkpoint folder holds of AdaptMix."""

from __future__ import annotations

import warnings
from pathlib import Path

from adaptmix import Controller
from adaptmix.errors import FreshStartWarning
from adaptmix.trainers import load_state, save_state

_FILE = "adaptmix.pt"


def write(controller: Controller, folder: str, *, here: bool) -> None:
    """Write a controller's state; all processes call this, and those that are told to write."""
    state = controller.state_dict()  # sums over processes
    if here:
        save_state(dict(state), Path(folder) / _FILE)


def load(controller: Controller, folder: str) -> None:
    """Let a controller go on from a folder, or warn that it begins anew where there is no state.

    Raises:
        StateError: the state does not fit.
    """
    path = Path(folder) / _FILE
    if path.is_file():
        controller.load_state_dict(load_state(path))
        return
    warnings.warn(
        f"The checkpoint {folder} was written without AdaptMix, so weights and statistics start "
        "from the beginning.",
        FreshStartWarning,
        stacklevel=2,
    )
