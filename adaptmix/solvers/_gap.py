"""The loss weights that minimise ERMA's bound on the generalization gap, exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptmix._checks import FloatArray, number, vector
from adaptmix.solvers._waterfill import water_fill

# Curvature lent to domains that have none, relative to the least there is: it picks one of the
# minimisers and is far too small to move it.
_RIDGE = 1e-40
# A bracket that begins at 0 has no geometric mean; this part of its end stands for the 0.
_NEXT_TO_ZERO = 1e-8


@dataclass(frozen=True, eq=False)
class _Program:
    """Minimise (Σ (π − u) L)² + Σ D u² subject to Σ u = 1 and u ≥ floor, for u = π w."""

    importance: FloatArray  # (K,) π, on the simplex
    lean: FloatArray  # (K,) L, shifted and scaled to [0, 1]
    curvature: FloatArray  # (K,) D = λ Var / n, scaled alike
    floor: FloatArray  # (K,)

    def lean_from(self, pivot: int) -> FloatArray:
        """Return L relative to one domain's, so that differences to it lose no digits."""
        shifted: FloatArray = self.lean - self.lean[pivot]
        return shifted


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

    Subject to Σ π w = 1 and w ≥ lower. The first term is the bias that re-weighting brings in,
    the second the variance that it can take out. Equal losses and variances with sizes in
    proportion to importance give w = 1.

    Where Var_i / n_i is 0 the minimiser may not be unique. Among the minimisers this is the one
    nearest to w = 1, by Σ π (w − 1)²: the limit of a ridge that vanishes.

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
        Salmani et al., arXiv:2511.06913, algorithm ERMA, whose update is mirror descent on F. The
        exact minimiser is this library's own.

    Example:
        >>> gap_weights([1.0, 1.0], [1.0, 3.0], importance=[0.5, 0.5], sizes=[100, 100])
        array([1.5, 0.5])
    """
    program = _program(loss_mean, loss_var, importance, sizes, variance_penalty, lower)
    weights: FloatArray = np.maximum(_minimise(program) / program.importance, lower)
    return weights


def _minimise(program: _Program) -> FloatArray:
    """Return the minimiser u by a search for the multiplier g of the bias.

    For given g the minimiser of Σ D u² − 2 g Σ u L is water-filling. At the optimum g equals the
    bias G(g) = Σ (π − u(g)) L, which never rises with g and is piecewise linear: Newton's method
    is exact as soon as two steps fall on one piece. When a step leaves the bracket, the geometric
    mean of its ends halves the bracket's logarithm, which bounds the number of steps.
    """
    pi, floor = program.importance, program.floor
    scaled = program.curvature * pi
    least = scaled.min(where=scaled > 0.0, initial=np.inf)
    ridge = _RIDGE * least if np.isfinite(least) else 1.0
    slope = pi / np.where(scaled > 0.0, scaled, ridge)
    ceiling = 2.0 * pi / pi.min()  # never reached; ties share by it, that is, by importance
    pivot = int(slope.argmax())
    g, low, high, sign = 0.0, 0.0, math.inf, 1.0
    piece: NDArray[np.bool_] | None = None
    while True:
        lean = sign * program.lean_from(pivot)
        u = water_fill(slope, floor, ceiling, threshold=-g * lean)
        lean = sign * program.lean_from(int(u.argmax()))  # the heaviest share's rounding is out
        error = float((pi - u) @ lean) - g
        if g == 0.0 and error < 0.0:
            sign, lean, error = -1.0, -lean, -error  # so that the search runs upwards
        free = u > floor
        if error == 0.0 or not free.any() or (piece is not None and (free == piece).all()):
            return u
        low, high = (g, high) if error > 0.0 else (low, g)
        active = np.where(free, slope, 0.0)
        pivot = int(active.argmax())
        lean = sign * program.lean_from(pivot)
        response = active @ (lean - (active @ lean) / active.sum()) ** 2
        g, piece = g + error / (1.0 + response), free
        if not low < g < high:
            g, piece = math.sqrt(max(low, _NEXT_TO_ZERO * high) * high), None
            if not low < g < high:
                return u


def _program(
    loss_mean: ArrayLike,
    loss_var: ArrayLike,
    importance: ArrayLike,
    sizes: ArrayLike,
    variance_penalty: float,
    lower: float,
) -> _Program:
    """Check the arguments; take the losses' origin and unit out of the problem."""
    mean = vector("loss_mean", loss_mean)
    variance = vector("loss_var", loss_var, size=mean.size, minimum=0.0)
    pi = vector("importance", importance, size=mean.size, minimum=0.0, strict=True)
    n = vector("sizes", sizes, size=mean.size, minimum=0.0, strict=True, infinite=True)
    penalty = number("variance_penalty", variance_penalty, minimum=0.0)
    floor = number("lower", lower, minimum=0.0, maximum=1.0)
    pi /= pi.sum()
    curvature = penalty * (variance / n)
    # Losses that hardly differ are equal: a smaller unit would only overflow.
    unit = max(float(np.ptp(mean)), 1e-100 * math.sqrt(curvature.max())) or 1.0
    return _Program(pi, (mean - mean.min()) / unit, curvature / unit / unit, floor * pi)
