"""The joint program: its pieces, and the conditions of its optimum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix.solvers._fgls import weigh
from adaptmix.solvers._waterfill import water_fill

# Finite stand-ins for limits. With inputs from 1e-15 to 1e15 they outweigh every finite rival by
# more than float64 can see, zero noise before infinite size.
INFINITE_SIZE = 1e50
_ZERO_NOISE = 1e-150
_TINY = np.finfo(np.float64).tiny
# The bias, relative to its terms, that rounding of the loss weights makes by itself.
_BIAS_ROUNDING = 1e-15
# Brent's method may have to halve a bracket that spans every exponent of float64.
_PASSES = 2000
_RELATIVE = 4.0 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class Program:
    """The checked arguments of ``joint_weights``: (K,) each, κ' = 1 / draws, and λ."""

    grad_var: FloatArray
    noise: FloatArray
    importance: FloatArray
    sizes: FloatArray
    kappa: float
    lower: FloatArray
    upper: FloatArray
    excess: FloatArray  # L_i − Σ π L
    penalty: float

    @cached_property
    def strength(self) -> FloatArray:
        """(K,) s_i = v_i / σ_i², relative to the largest."""
        strength: FloatArray = np.sqrt(self.grad_var / max(self.grad_var.max(), _TINY))
        least = self.noise.min()
        if least > 0.0:
            strength /= self.noise / least
        else:
            noisy = self.noise > 0.0
            least = self.noise.min(where=noisy, initial=np.inf)
            strength /= np.where(noisy, self.noise / least, _ZERO_NOISE)
        strength /= max(strength.max(), _TINY)
        return strength

    @property
    def finite_sizes(self) -> FloatArray:
        """(K,) sizes with the stand-in for infinity."""
        return np.minimum(self.sizes, INFINITE_SIZE)

    def tilt(self, multiplier: float) -> FloatArray | float:
        """Return (1 + t (L_i − Σ π L) / h_i)₊, by which the bias penalty changes the curvature."""
        if multiplier == 0.0:
            return 1.0
        return np.maximum(1.0 + multiplier * (self.excess * self.noise / self.grad_var), 0.0)

    def shares(self, tilt: FloatArray | float) -> FloatArray:
        """Return the shares that are optimal for curvatures changed by ``tilt``."""
        s = self.strength * tilt
        threshold: FloatArray | float = 0.0
        if self.kappa > 0.0:
            threshold = np.divide(self.kappa, s, out=np.zeros_like(s), where=s > 0.0)
        return water_fill(self.finite_sizes * s, self.lower, self.upper, threshold=threshold)

    def samples(self, shares: FloatArray) -> FloatArray:
        """Return 1 / (1/n_i + κ'/p_i), what a domain's data and draws are worth; 0 at p_i = 0."""
        if self.kappa == 0.0:
            return np.where(shares > 0.0, self.sizes, 0.0)
        with np.errstate(divide="ignore", over="ignore"):  # κ'/0 is infinite
            return 1.0 / (1.0 / self.sizes + self.kappa / shares)

    def loss_weights(self, shares: FloatArray, tilt: FloatArray | float) -> FloatArray:
        """Return the loss weights that are optimal for given shares."""
        return weigh(self.noise, self.samples(shares) * tilt, self.importance)

    def variance(self, loss: FloatArray, shares: FloatArray) -> float:
        """Return Σ π² w² v² (1/n + κ'/p)."""
        # A domain without loss weight needs no samples.
        samples = np.where(loss > 0.0, self.samples(shares), np.inf)
        return float(((self.importance * loss) ** 2 * self.grad_var / samples).sum())

    def error(self, loss: FloatArray, shares: FloatArray) -> float:
        """Return the objective over the squared signal Σ π w h, which scales of w leave alone."""
        signal = float((self.importance * loss) @ (np.sqrt(self.grad_var) * self.strength))
        return self.value(loss, shares) / signal**2 if signal > 0.0 else np.inf

    @cached_property
    def multiplier(self) -> tuple[float, int]:
        """The t at which tilted weights pay what their bias costs, and passes made to find it.

        With Ψ(t) = ½ max_p Σ (h + t (L − Σ π L))₊² / (v² (1/n + κ'/p)), convex, it is the root of
        t + λ Ψ'(t), which rises, and Ψ' is the bias that the weights for t have.
        """
        if self.penalty == 0.0 or not self.excess.any():
            return 0.0, 0
        worth = self.penalty * self.excess / self.noise

        def excess(t: float) -> float:
            tilt = self.tilt(t)
            samples = np.minimum(self.samples(self.shares(tilt)), INFINITE_SIZE)
            return t + float(worth @ (tilt * samples))

        end = -excess(0.0)
        if end == 0.0:
            return 0.0, 1
        from scipy.optimize import brentq  # slow to import, and seldom needed

        found = brentq(
            excess, end, 0.0, xtol=_TINY, rtol=_RELATIVE, maxiter=_PASSES, full_output=True
        )
        return float(found[0]), int(found[1].function_calls) + 1

    def bias(self, loss: FloatArray) -> float:
        """Return Σ π w (L − Σ π L), 0 where it is no larger than its rounding."""
        terms = self.importance * loss * self.excess
        bias = float(terms.sum())
        return bias if abs(bias) > _BIAS_ROUNDING * float(np.abs(terms).sum()) else 0.0

    def value(self, loss: FloatArray, shares: FloatArray) -> float:
        """Return the objective at weights."""
        priced = self.penalty * self.bias(loss) ** 2 if self.penalty > 0.0 else 0.0
        return self.variance(loss, shares) + priced
