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


def upper_part(expected: FloatArray) -> NDArray[np.int64]:
    """Return (K,) the most that a count may be: ⌈expected⌉, up to rounding error, or 1."""
    most: NDArray[np.int64] = np.maximum(np.ceil(expected - _SNAP), 1.0).astype(np.int64)
    return most


def systematic_counts(expected: FloatArray, uniform: float | FloatArray) -> NDArray[np.int64]:
    """Round expected counts to integers with the same sum and the same mean.

    Systematic sampling on the fractional parts: every count is ⌊b⌋ or ⌈b⌉ and E[count] = b.

    Args:
        expected: (…, K) non-negative with integer sums.
        uniform: (…) numbers drawn uniformly from [0, 1), one for each sum.

    Returns:
        (…, K) int64 counts whose sums are those of ``expected``.

    Source:
        Madow, On the theory of systematic sampling II (1949).
    """
    whole = whole_part(expected)
    fractions = expected - whole
    fractions[fractions < _SNAP] = 0.0
    missing = np.rint(expected.sum(-1, keepdims=True)) - whole.sum(-1, keepdims=True)
    total = fractions.sum(-1, keepdims=True)
    np.maximum(missing, 0.0, out=missing)
    edges = np.cumsum(fractions * (missing / np.where(total > 0.0, total, 1.0)), axis=-1)
    # From the last fraction on, exactly what is missing, whatever rounding made of the sum.
    np.copyto(edges, missing, where=edges == edges[..., -1:])
    edges += np.asarray(uniform)[..., np.newaxis]
    ticks = np.minimum(np.floor(edges), missing).astype(np.int64)
    whole[..., 0] += ticks[..., 0]
    whole[..., 1:] += ticks[..., 1:] - ticks[..., :-1]
    return whole
