"""Steps from the weights last returned towards the proposed ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import Weights


def start(weights: Weights) -> dict[str, FloatArray]:
    """Return what is remembered of weights that a run starts with, or goes on from."""
    return {"sampling": weights.sampling.copy(), "objective": weights.objective.copy()}


def step(
    last: dict[str, Any], proposal: Weights, part: float
) -> tuple[Weights, dict[str, FloatArray]]:
    """Go ``part`` of the way to a proposal; none of it at 0 and exactly all of it at 1.

    Lines keep Σ p = 1 and Σ α = 1, so that what comes of weights needs no check.

    Returns:
        The weights there, and what to remember of them.
    """
    if part == 1.0:
        return proposal, start(proposal)
    sampling = last["sampling"] + part * (proposal.sampling - last["sampling"])
    objective = last["objective"] + part * (proposal.objective - last["objective"])
    # A share that fades with its weight may be rounded to 0 first.
    objective = np.where(sampling > 0.0, objective, 0.0)
    moved = proposal.replaced(sampling, objective)
    return moved, start(moved)
