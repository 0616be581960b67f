"""How uncertain an estimate is for its number of rows, measured over domains and led by a prior."""

from __future__ import annotations

import numpy as np

from adaptmix._checks import FloatArray

# What is known of rows before any was seen: how heavy tails are, and degrees of freedom it counts.
HEAVY_TAILS, _PRIOR_FREEDOM = 5.0, 4.0


def scatter_of(scatter: FloatArray, freedom: FloatArray, *, prior: float = HEAVY_TAILS) -> float:
    """Return the relative variance of one row over all domains.

    Args:
        scatter: (K,) each domain's; NaN where it is not known.
        freedom: (K,) degrees of freedom behind each.
        prior: what it is taken to be where nothing is known.
    """
    known = np.isfinite(scatter) & (freedom > 0.0)
    if not known.any():
        return prior
    total = prior * _PRIOR_FREEDOM + float(freedom[known] @ scatter[known])
    return total / (_PRIOR_FREEDOM + float(freedom[known].sum()))
