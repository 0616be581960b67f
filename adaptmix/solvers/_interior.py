"""Convex programs over a simplex with bounds, by an interior point method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.linalg import LinAlgError

from adaptmix._checks import FloatArray

# Ten rounds are usual; the worst of 1,500 random programs needed 38.
_ROUNDS = 60
_CONVERGED = 1e-14
# Rounds without progress after which rounding leaves nothing to gain.
_PATIENCE = 15
_PROGRESS = 0.7
# The part of the way to the nearest bound that a step goes, far from the optimum and near it.
_INSIDE = 0.995
_INSIDE_LAST = 1.0 - 1e-6
# Bounds with less room between them leave none.
_NO_ROOM = 1e-12
# Bounds as near as this are met: moving more mass could upset a steep direction.
_MET = 1e-15
# Slopes below this part of f are rounding to the line search.
_NEGLIGIBLE = 1e-12
_ROUNDING = 2.0 * np.finfo(np.float64).eps
# Values below this part of the first one are 0.
_NOTHING = 1e-28
# The line search halves its bracket so often.
_HALVINGS = 10
# The part of the gap that a step without a corrector leaves.
_CALM = 0.3


class Local(NamedTuple):
    """A function around a point.

    Args:
        value: f.
        slope: (K,) half its derivative.
        curvature: returns (K, K) half its second derivative, positive semi-definite.
    """

    value: float
    slope: FloatArray
    curvature: Callable[[], FloatArray]


def minimise(
    function: Callable[[FloatArray], Local], lower: FloatArray, upper: FloatArray
) -> FloatArray:
    """Minimise f(x) subject to Σ x = 1 and lower ≤ x ≤ upper.

    The method is Mehrotra's, with a line search for the kinks of f's derivative. Each round
    factorises one (K, K) matrix.

    Args:
        function: a non-negative convex f whose derivative is continuous and piecewise linear.
        lower: (K,) with Σ lower ≤ 1.
        upper: (K,) with Σ upper ≥ 1.

    Returns:
        (K,) a minimiser; where there are several, one in the middle of them.

    Source:
        Mehrotra, On the implementation of a primal-dual interior point method, SIAM J. Optim. 1992.
    """
    room = upper - lower
    part = (1.0 - lower.sum()) / room.sum() if room.any() else 0.0
    if part <= _NO_ROOM or part >= 1.0 - _NO_ROOM:
        return (lower if part <= _NO_ROOM else upper).copy()
    start = lower + part * room
    scale = function(start).value
    if not scale > 0.0:
        return start

    def relative(x: FloatArray) -> Local:
        value, slope, curvature = function(x)
        return Local(value / scale, slope / scale, lambda: curvature() / scale)

    return _snapped(_central_path(relative, _Point.between(lower, upper, start)), lower, upper)


@dataclass(frozen=True)
class _Point:
    """A point inside its bounds: the distances to them, and their multipliers."""

    free: FloatArray  # (K,) 1 where the bounds leave room, 0 elsewhere
    base: FloatArray  # (K,) lower bounds; what is not free itself
    down: FloatArray  # (K,) distances, kept apart from x so that small ones keep their digits
    up: FloatArray
    below: FloatArray  # (K,) multipliers of the lower bounds
    above: FloatArray
    level: float  # multiplier of Σ x = 1

    @classmethod
    def between(cls, lower: FloatArray, upper: FloatArray, x: FloatArray) -> _Point:
        free = (upper - lower > _NO_ROOM).astype(np.float64)
        down, up = (np.where(free, distance, 1.0) for distance in (x - lower, upper - x))
        centre = free / free.sum()
        return cls(free, np.where(free, lower, x), down, up, centre / down, centre / up, 0.0)

    @property
    def x(self) -> FloatArray:
        return self.base + self.free * self.down

    @property
    def gap(self) -> float:
        """How much the bounds may still hide, in units of f."""
        return float(self.down @ self.below + self.up @ self.above)

    def longest(self, step: _Step) -> float:
        """Return the part of a step, at most 1, at which the first distance or multiplier is 0."""
        values = np.concatenate((self.down, self.up, self.below, self.above))
        moves = np.concatenate((step.move, -step.move, step.below, step.above))
        falling = moves < 0.0
        return min(1.0, float((-values[falling] / moves[falling]).min(initial=np.inf)))

    def after(self, step: _Step, part: float) -> _Point:
        return _Point(
            self.free,
            self.base,
            self.down + part * step.move,
            self.up - part * step.move,
            self.below + part * step.below,
            self.above + part * step.above,
            self.level + part * step.level,
        )


class _Step(NamedTuple):
    """Changes of a point on the way to where every distance times its multiplier is ``centre``."""

    move: FloatArray
    level: float
    below: FloatArray
    above: FloatArray
    centre: float


def _central_path(function: Callable[[FloatArray], Local], point: _Point) -> FloatArray:
    """Return the best point on the way to the optimum."""
    best, least, idle, calm = point.x, np.inf, 0, False
    for _ in range(_ROUNDS):
        x = point.x
        value, slope, curvature = function(x)
        matrix = curvature()
        rounding = _ROUNDING * float(np.sqrt(np.diagonal(matrix)) @ x) ** 2 + _NOTHING
        residual = point.free * (slope - point.level - point.below + point.above)
        off = np.abs(residual)
        error = point.gap + float(off @ x + off.max())  # bounds the distance to the minimum
        idle = 0 if error < _PROGRESS * least else idle + 1
        if error < least:
            best, least = x, error
        step = _newton(point, residual, matrix, calm)
        if error <= _CONVERGED * value + rounding or idle > _PATIENCE or step is None:
            break
        inside = min(max(_INSIDE, 1.0 - error / value), _INSIDE_LAST)
        part = min(1.0, inside * point.longest(step))
        part = _shortened(function, point, step, part, _NEGLIGIBLE * value + rounding)
        calm = calm or part == 0.0
        point = point.after(step, part)
    return best


def _newton(point: _Point, residual: FloatArray, curvature: FloatArray, calm: bool) -> _Step | None:
    """Return the predictor with its corrector, or where it is calm a step that surely descends.

    None where rounding lets no matrix be factorised.
    """
    from scipy.linalg import cho_factor, cho_solve  # slow to import, and used by one solver

    free, down, up, below, above = point.free, point.down, point.up, point.below, point.above
    matrix = curvature * np.outer(free, free)
    diagonal = np.einsum("ii->i", matrix)
    diagonal += below / down + above / up + (1.0 - free)
    diagonal *= 1.0 + _ROUNDING
    gap = point.gap
    try:
        factor = cho_factor(matrix, overwrite_a=True)
    except (LinAlgError, ValueError):
        return None
    ones = cho_solve(factor, free)
    missing = 1.0 - point.x.sum()

    def towards(low: FloatArray, high: FloatArray, centre: float) -> _Step:
        """Solve the linearised conditions for given changes of the products."""
        wanted = cho_solve(factor, free * (low / down - high / up) - residual)
        level = (missing - wanted.sum()) / ones.sum()
        move = wanted + level * ones
        return _Step(
            move, float(level), (low - below * move) / down, (high + above * move) / up, centre
        )

    pairs = 2.0 * float(free.sum())
    if calm:
        centre = _CALM * gap / pairs
        return towards(free * centre - down * below, free * centre - up * above, centre)
    first = towards(-down * below, -up * above, 0.0)
    left = max(point.after(first, point.longest(first)).gap, 0.0)
    centre = gap / pairs * (left / gap) ** 3
    return towards(
        free * (centre - first.move * first.below) - down * below,
        free * (centre + first.move * first.above) - up * above,
        centre,
    )


def _shortened(
    function: Callable[[FloatArray], Local], point: _Point, step: _Step, part: float, noise: float
) -> float:
    """Return the part of a step at which f and the barrier of the bounds no longer fall.

    0 when they do not fall even at the beginning, as a corrector near kinks may do.
    """
    x, move = point.x, step.move

    def rising(part: float) -> bool:
        wall = move / (point.down + part * move) - move / (point.up - part * move)
        slope = function(x + part * move).slope @ move - step.centre * (point.free @ wall)
        return bool(slope > noise)

    if not rising(part):
        return part
    low, high = 0.0, part
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if rising(middle) else (middle, high)
    return high if low else 0.0


def _snapped(x: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Return x with bounds that are as good as met met exactly, and Σ x = 1."""
    met = np.where(x - lower <= _MET, lower, np.where(upper - x <= _MET, upper, x))
    missing = 1.0 - met.sum()
    room = upper - met if missing > 0.0 else met - lower
    met[room.argmax()] += missing
    return met
