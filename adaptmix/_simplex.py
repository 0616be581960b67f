"""Vectors of shares: normalisation, floors and the effective number of domains."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, lower_share, vector


def normalise(values: ArrayLike, *, importance: ArrayLike | None = None) -> FloatArray:
    """Scale non-negative values so that Σ values = 1, or Σ importance · values = 1.

    Args:
        values: (K,) non-negative, not all zero. Their scale may be anything float64 holds.
        importance: (K,) positive weights of the sum; ones when None.

    Returns:
        (K,) scaled values.

    Raises:
        ValueError: negative or non-finite values, or nothing to scale.
    """
    v = vector("values", values, minimum=0.0)
    peak = v.max()
    if peak == 0.0:
        raise ValueError("values must not all be 0; got nothing to normalise.")
    v = v / peak  # so that the sum neither overflows nor underflows
    weight = (
        np.ones_like(v)
        if importance is None
        else vector("importance", importance, size=v.size, minimum=0.0)
    )
    total = float(weight @ v)
    if not total > 0.0:
        raise ValueError(f"importance must be > 0 where values are; got a sum of {total:g}.")
    scaled: FloatArray = v / total
    return scaled


def mix_floor(shares: ArrayLike, *, lower: float) -> FloatArray:
    """Mix shares with the uniform distribution so that none is below ``lower``.

    Returns (1 − K·lower)·shares + lower, which keeps the sum at one.

    Args:
        shares: (K,) on the simplex.
        lower: the floor, in [0, 1/K].

    Raises:
        ValueError: ``lower`` above 1/K.
    """
    p = vector("shares", shares, minimum=0.0)
    floor = lower_share("lower", lower, p.size)
    return (1.0 - p.size * floor) * p + floor


def effective_domains(shares: ArrayLike) -> float:
    """Return exp(entropy) of shares: K when they are equal, 1 when one domain has all.

    Args:
        shares: (K,) non-negative, not all zero; normalised here.

    Source:
        Hill, Diversity and Evenness (1973), the number of order 1.
    """
    p = normalise(shares)
    positive = p[p > 0.0]
    return float(np.exp(-(positive * np.log(positive)).sum()))
