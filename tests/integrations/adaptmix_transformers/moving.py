"""Callbacks whose weights move within a few steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf


def adapting(domains: Any = "source", **settings: Any) -> AdaptMixCallback:
    """A callback whose weights move within a few steps."""
    options: dict[str, Any] = {"policy": hf.Moving(), "update_every": 1, "lag": 4}
    return AdaptMixCallback(domains, **(options | settings))


def moved(callback: AdaptMixCallback) -> float:
    """How far shares have come from importance."""
    weights = callback.controller.weights
    return float(np.abs(weights.sampling - weights.importance).max())
