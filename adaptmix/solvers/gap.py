"""The loss weights that minimise ERMA's bound on the generalization gap, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from adaptmix.checks import FloatArray, number, vector
from adaptmix.solvers.waterfill import water_fill

_RIDGE = 1e-40
_MAX_STEPS = 500


@dataclass(frozen=True, eq=False)
class _Program:
    """Minimise (Σ (π − u) L)² + Σ D u² subject to Σ u = 1 and u ≥ floor, with u = π w."""

    importance: FloatArray  # (K,) π, on the simplex
    lean: FloatArray  # (K,) L, from 0 to 1 after shift and scale, which change nothing
    curvature: FloatArray  # (K,) D = λ Var / n in the same units
    floor: FloatArray  # (K,)

    def bias(self, u: FloatArray, lean: FloatArray) -> float:
        return float((self.importance - u) @ lean)


def gap_weights(
    loss_mean: ArrayLike,
    loss_var: ArrayLike,
    *,
    importance: ArrayLike,
    sizes: ArrayLike,
    variance_penalty: float = 1.0,
    lower: float = 0.0,
) -> FloatArray:
    """Minimise F(w) = (Σ π_i (1 − w_i) L_i)² + λ Σ π_i² w_i² Var_i / n_i over loss weights.

    Subject to Σ π w = 1 and w ≥ lower. The first term is the bias that re-weighting brings in, the
    second the variance that it can take out.

    Args:
        loss_mean: (K,) mean loss L_i.
        loss_var: (K,) variance of the loss over samples Var_i ≥ 0, loss².
        importance: (K,) positive π_i; normalised here.
        sizes: (K,) positive numbers of samples n_i, may be infinite.
        variance_penalty: λ ≥ 0.
        lower: smallest loss weight, in [0, 1].

    Returns:
        (K,) loss weights.

    Raises:
        ValueError: an argument outside its range.

    Source:
        Salmani et al., arXiv:2511.06913, algorithm ERMA, whose update is mirror descent on F.

    Example:
        >>> gap_weights([1.0, 1.0], [1.0, 3.0], importance=[0.5, 0.5], sizes=[100, 100])
        array([1.5, 0.5])
    """
    p = _program(loss_mean, loss_var, importance, sizes, variance_penalty, lower)
    w = _minimise(p)[0] / p.importance
    return np.maximum(w, lower)

def _minimise(p):
    # A vanishing ridge
    scaled = p.curvature * p.importance
    least = scaled.min(where=scaled > 0.0, initial=np.inf)
    D = np.where(scaled > 0, p.curvature, (_RIDGE * least if np.isfinite(least) else 1.0) / p.importance)
    slope = 1.0 / D
    ceiling = p.importance / p.importance.min()
    g, low, high = 0.0, (-np.inf, 0.0), (np.inf, 0.0)
    pivot = int(slope.argmax())
    previous = None
    for step in range(_MAX_STEPS):
        lean = p.lean - p.lean[pivot]
        u, _ = water_fill(slope, p.floor, ceiling, threshold=-g * lean)
        error = p.bias(u, lean) - g
        free = u > p.floor
        if error == 0.0 or not free.any() or (previous is not None and np.array_equal(free, previous)):
            return u, step
        pivot = int(np.where(free, slope, 0.0).argmax())
        lean = p.lean - p.lean[pivot]
        weight = np.where(free, slope, 0.0)
        mean = (weight @ lean) / weight.sum()
        response = weight @ (lean - mean) ** 2
        new = g + error / (1.0 + response)
        if error > 0: low = (g, error)
        else: high = (g, error)
        previous = free
        if not low[0] < new < high[0]:
            previous = None
            new = 0.5*(low[0]+high[0])
            if not low[0] < new < high[0]: return u, step
        g = new
    raise RuntimeError("x")

def _program(loss_mean, loss_var, importance, sizes, variance_penalty, lower):
    mean = vector("loss_mean", loss_mean)
    size = mean.size
    var = vector("loss_var", loss_var, size=size, minimum=0.0)
    pi = vector("importance", importance, size=size, minimum=0.0, strict=True)
    n = vector("sizes", sizes, size=size, minimum=0.0, strict=True, infinite=True)
    penalty = number("variance_penalty", variance_penalty, minimum=0.0)
    floor = number("lower", lower, minimum=0.0, maximum=1.0)
    pi /= pi.sum()
    span = float(np.ptp(mean)) or 1.0
    return _Program(pi, (mean - mean.min()) / span, penalty * (var / n) / span**2, floor * pi)
