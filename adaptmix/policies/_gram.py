"""Inner products of mean gradients, averaged over updates by the rows that tell them."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import DomainStats

# Averages are over about the last quarter of the updates so far: the noise of estimates averages
# out as the run goes on, and what gradients were like at its beginning fades.
_FADING = 3.0
# What exact estimates count in that average.
_EXACT = 1e9
# Fewer rows than this, long faded, are as good as none.
_FEW = 1e-3
_TINY = 1e-300


def unknown(num_domains: int) -> dict[str, Any]:
    """Return the state before anything is known."""
    nothing = np.zeros((num_domains, num_domains))
    return {"gram": nothing, "evidence": nothing, "updates": 0}


def averaged(stats: DomainStats, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with the inner products of these statistics in it."""
    now = stats.grad_gram
    if now is None:
        return state
    rows = np.minimum(stats.count, _EXACT)
    samples = np.where(np.isfinite(now), np.minimum(rows, rows[:, np.newaxis]), 0.0)
    updates = state["updates"] + 1
    evidence = updates / (updates + _FADING) * state["evidence"] + samples
    step = samples / np.maximum(evidence, _TINY)
    gram = state["gram"] + (np.nan_to_num(now) - state["gram"]) * step
    return {**state, "gram": gram, "evidence": evidence, "updates": updates}


def mean_error(variance: FloatArray, sizes: FloatArray, stats: DomainStats) -> FloatArray:
    """Return (K,) estimated squared errors of the domains' mean gradients.

    Args:
        variance: (K,) v², in the objective's unit.
        sizes: (K,) n, in that unit; rows that repeat tell no more than the domain has.
        stats: how many rows are behind the gradients.
    """
    rows = np.minimum(stats.count * stats.tokens_per_row, sizes)
    error: FloatArray = variance / np.maximum(rows, _FEW)
    return error
