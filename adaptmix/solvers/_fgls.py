"""FGLS loss weights: each sample counts by the inverse of its domain's noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, vector

# Keeps 0 / 0 at 0 without changing any other quotient.
_TINY = np.finfo(np.float64).tiny


def fgls_weights(
    noise: ArrayLike, *, importance: ArrayLike, sizes: ArrayLike | None = None
) -> FloatArray:
    """Return loss weights w_i ∝ n_i / (π_i σ_i²) with Σ π w = 1.

    By Aitken's theorem the best linear unbiased estimator weights every sample by 1/σ². It
    minimises Σ (π_i w_i)² σ_i² / n_i.

    At the limits: domains with σ² = 0 share all the weight, and among those the ones with
    infinitely many samples, in proportion to what stays finite.

    Args:
        noise: (K,) noise σ_i² ≥ 0, variance of the residual or dispersion; only ratios matter.
        importance: (K,) positive π_i; normalised here.
        sizes: (K,) positive numbers of samples n_i, may be infinite; proportional to importance
            when None, so that w_i ∝ 1/σ_i² and equal noise gives exactly one.

    Returns:
        (K,) loss weights.

    Raises:
        ValueError: negative noise, or importance or sizes that are not positive.

    Source:
        Salmani et al., arXiv:2511.06913, algorithm One-shot FGLS; Aitken (1936).

    Example:
        >>> fgls_weights([1.0, 4.0], importance=[0.5, 0.5])
        array([1.6, 0.4])
    """
    pi = vector("importance", importance, minimum=0.0, strict=True)
    variance = vector("noise", noise, size=pi.size, minimum=0.0)
    if sizes is None:
        return weigh(variance, None, pi)
    n = vector("sizes", sizes, size=pi.size, minimum=0.0, strict=True, infinite=True)
    return weigh(variance, n, pi)


def weigh(noise: FloatArray, samples: FloatArray | None, importance: FloatArray) -> FloatArray:
    """Return w_i ∝ n_i / (π_i σ_i²) with Σ π w = Σ π, and its limits; nothing is checked.

    Args:
        noise: (K,) σ_i², from 0 to infinity.
        samples: (K,) n_i, from 0 to infinity and not all 0; proportional to importance when None.
        importance: (K,) positive π_i.
    """
    used = noise if samples is None else np.where(samples > 0.0, noise, np.inf)
    least = used.min()
    weights: FloatArray = least / used if least > 0.0 else (used == 0.0).astype(np.float64)
    if samples is not None:
        weights *= _leading(np.where(weights > 0.0, samples, 0.0)) / importance
    # Both sums run over the same numbers when all weights are one, which then stay exactly one.
    weights /= (importance * weights).sum() / importance.sum()
    return weights


def _leading(values: FloatArray) -> FloatArray:
    """Return values relative to the largest; infinite ones leave nothing to the others."""
    peak = values.max()
    return np.isinf(values).astype(np.float64) if peak == np.inf else values / peak
