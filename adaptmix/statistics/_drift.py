"""Noise of a first pass over many rows, brought up to date by a few held-out rows."""

from __future__ import annotations

import numpy as np

from adaptmix._checks import FloatArray


def updated(
    first: FloatArray,
    first_rows: FloatArray,
    held: FloatArray,
    held_rows: FloatArray,
    *,
    scatter: float,
) -> tuple[FloatArray, FloatArray]:
    """Return (K,) noise as it is now, and the effective number of rows behind it.

    The first pass tells noise from many rows, but of a model that has learnt since; held-out rows
    tell today's from few. The ratios r of both, on the scale of deviations, are what the noise has
    changed by. They are drawn towards their mean over domains as far as chance explains that they
    differ (Bühlmann and Straub's credibility, as in ``policies.Shrink``): where all domains changed
    alike, the first pass still tells the most; where they did not, held-out rows do.

    Args:
        first: (K,) noise of the first pass; NaN where there is none.
        first_rows: (K,) effective number of rows behind it.
        held: (K,) noise of held-out rows; NaN where there are none.
        held_rows: (K,) effective number of rows behind it.
        scatter: relative variance of noise from one row.
    """
    both = (first > 0.0) & (held > 0.0)
    noise, rows = (
        np.where(np.isnan(first), held, first),
        np.where(first > 0.0, first_rows, held_rows),
    )
    if not both.any():
        return noise, rows
    n = np.zeros_like(first)
    n[both] = 1.0 / (1.0 / first_rows[both] + 1.0 / held_rows[both])
    change = np.ones_like(first)
    change[both] = np.sqrt(held[both] / first[both])
    total = n.sum()
    mean = float(n @ change / total)
    sampling = scatter / 4.0 * mean**2  # a deviation's is a quarter of the variance's
    spread = total - float(n @ n) / total
    excess = float(n @ np.square(change - mean)) - (both.sum() - 1.0) * sampling
    between = max(excess, 0.0) / spread if spread > 0.0 else 0.0
    trust = n * between / (n * between + sampling)
    drawn = mean + trust * (change - mean)
    noise = np.where(first > 0.0, first * drawn**2, noise)
    inverse = np.zeros_like(first)
    inverse[both] = (1.0 - trust[both]) ** 2 / first_rows[both] + trust[both] / held_rows[both]
    return noise, np.where(both, 1.0 / np.where(both, inverse, 1.0), rows)
