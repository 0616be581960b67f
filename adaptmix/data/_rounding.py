"""Randomised rounding of expected counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray

# Shares come out of solvers with rounding errors of a few ulp: 3 − 1e-15 expected rows mean 3, and
# 1e-15 none.
_SNAP = 1e-9


def whole_part(expected: FloatArray) -> NDArray[np.int64]:
    """Return (K,) the count each domain is sure of: ⌊expected⌋, up to rounding error."""
    whole: NDArray[np.int64] = np.floor(expected + _SNAP).astype(np.int64)
    return whole


def systematic_counts(expected: FloatArray, uniform: float) -> NDArray[np.int64]:
    """Round expected counts to integers with the same sum and the same mean.

    Systematic sampling on the fractional parts: every count is ⌊b⌋ or ⌈b⌉ and E[count] = b.

    Args:
        expected: (K,) non-negative with an integer sum.
        uniform: one number drawn uniformly from [0, 1).

    Returns:
        (K,) int64 counts whose sum is that of ``expected``.

    Source:
        Madow, On the theory of systematic sampling II (1949).
    """
    whole = whole_part(expected)
    missing = round(float(expected.sum())) - int(whole.sum())
    if missing <= 0:
        return whole
    fractions = expected - whole
    fractions[fractions < _SNAP] = 0.0
    edges = np.cumsum(fractions * (missing / fractions.sum()))
    edges[int(np.flatnonzero(fractions)[-1]) :] = missing
    ticks = np.minimum(np.floor(edges + uniform), missing).astype(np.int64)
    whole[0] += ticks[0]
    whole[1:] += ticks[1:] - ticks[:-1]
    return whole
