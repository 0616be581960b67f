"""The joint problem: loss weights and shares that are best together, not one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from adaptmix.checks import FloatArray, number, vector
from adaptmix.solvers.fgls import weigh
from adaptmix.solvers.waterfill import share_bounds, trade_residual, water_fill

# Finite stand-ins for limits. With inputs from 1e-15 to 1e15 they outweigh every finite rival by
# more than float64 can see, zero noise before infinite size.
_INFINITE_SIZE = 1e50
_ZERO_NOISE = 1e-150


@dataclass(frozen=True, eq=False)
class JointSolution:
    """What ``joint_weights`` found.

    Args:
        loss: (K,) loss weights w, Σ importance · loss = 1.
        sampling: (K,) shares p, Σ p = 1.
        value: the objective at (loss, sampling), in units of ``grad_var`` per sample.
        kkt_residual: ``joint_residual`` of this solution, relative.
        iterations: passes of water-filling; always 1, for the solution is exact.
    """

    loss: FloatArray
    sampling: FloatArray
    value: float
    kkt_residual: float
    iterations: int


@dataclass(frozen=True, eq=False)
class _Program:
    """Checked arguments: (K,) each, and κ' = 1 / (batch size · horizon)."""

    grad_var: FloatArray
    noise: FloatArray
    importance: FloatArray
    sizes: FloatArray
    kappa: float
    lower: FloatArray
    upper: FloatArray
    strength: FloatArray  # s_i = v_i / σ_i², relative to the largest

    @property
    def finite_sizes(self) -> FloatArray:
        """(K,) sizes with the stand-in for infinity."""
        return np.minimum(self.sizes, _INFINITE_SIZE)

    def gain(self, shares: FloatArray) -> FloatArray:
        """Return s_i / (1/n_i + κ'/p_i) / p_i, the root of Φ's slope up to √κ'."""
        spread = shares / self.finite_sizes + self.kappa
        never = np.where(self.strength > 0.0, np.inf, 0.0)
        return np.divide(self.strength, spread, out=never, where=spread > 0.0)

    def samples(self, shares: FloatArray) -> FloatArray:
        """Return 1 / (1/n_i + κ'/p_i), what a domain's data and draws are worth; 0 at p_i = 0."""
        with np.errstate(divide="ignore", over="ignore"):
            spread = self.kappa / shares if self.kappa > 0.0 else np.zeros_like(shares)
            return np.where(shares > 0.0, 1.0 / (1.0 / self.sizes + spread), 0.0)

    def loss_weights(self, shares: FloatArray) -> FloatArray:
        """Return the loss weights that are optimal for given shares."""
        return weigh(self.noise, self.samples(shares), self.importance)


def joint_weights(
    grad_var: ArrayLike,
    noise: ArrayLike,
    *,
    importance: ArrayLike,
    sizes: ArrayLike,
    batch_size: float,
    horizon: float,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
) -> JointSolution:
    """Minimise the finite-sample and the SGD error over loss weights and shares together.

    The convex program, with κ' = 1 / (batch_size · horizon) and h_i = v_i²/σ_i²,

        minimise Σ π_i² w_i² v_i² (1/n_i + κ'/p_i)   subject to   Σ π_i w_i h_i fixed, w ≥ 0,
        Σ p = 1, lower ≤ p ≤ upper,   and then Σ π w = 1 by rescaling w,

    has an exact solution. With s_i = v_i/σ_i² the best weights for given shares are π_i w_i v_i ∝
    s_i / (1/n_i + κ'/p_i). What is left is to maximise Φ(p) = Σ s_i² n_i p_i / (p_i + κ' n_i),
    concave and separable: p_i = clip(n_i (θ s_i − κ'), lower_i, upper_i), by water-filling.

    As κ' → 0 the loss weights become ``fgls_weights``. For every κ' the shares are
    ``neyman_shares`` of π w v.

    At the limits: a domain without share has loss weight 0. Domains with σ = 0 share all the loss
    weight, and the shares among themselves first. Infinitely many samples leave a domain's SGD
    term only; where several are equally worth sampling, they share by upper − lower. A
    domain with v = 0 needs no share beyond its lower bound, and when all v are 0 the shares are
    the ones nearest to uniform.

    Args:
        grad_var: (K,) within-domain gradient variance v_i² ≥ 0, grad².
        noise: (K,) residual noise or dispersion σ_i² ≥ 0; only ratios matter.
        importance: (K,) positive π_i; normalised here.
        sizes: (K,) positive numbers of samples n_i, may be infinite.
        batch_size: samples in a batch, > 0.
        horizon: optimizer steps, > 0, may be infinite.
        lower: scalar or (K,), smallest share.
        upper: scalar or (K,), largest share.

    Returns:
        The weights, and the certificate of their optimality.

    Raises:
        ValueError: an argument outside its range, or bounds that no shares meet.

    Source:
        The program extends Salmani et al., arXiv:2511.06913, which tunes one weight at a time;
        its solution is this library's own.

    Example:
        >>> solution = joint_weights(
        ...     [4.0, 1.0], [4.0, 1.0], importance=[0.5, 0.5], sizes=[100, 100],
        ...     batch_size=10, horizon=math.inf,
        ... )
        >>> solution.loss, solution.sampling.round(3)
        (array([0.4, 1.6]), array([0.333, 0.667]))
    """
    program = _program(grad_var, noise, importance, sizes, batch_size, horizon, lower, upper)
    s, n = program.strength, program.finite_sizes
    threshold = np.divide(program.kappa, s, out=np.zeros_like(s), where=s > 0.0)
    p = water_fill(n * s, program.lower, program.upper, threshold=threshold)
    w = program.loss_weights(p)
    used = w > 0.0
    error = (program.importance * w) ** 2 * program.grad_var
    value = float((error[used] / program.samples(p)[used]).sum())
    return JointSolution(w, p, value, _residual(program, w, p), 1)


def joint_residual(
    grad_var: ArrayLike,
    noise: ArrayLike,
    loss: ArrayLike,
    sampling: ArrayLike,
    *,
    importance: ArrayLike,
    sizes: ArrayLike,
    batch_size: float,
    horizon: float,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
) -> float:
    """Return how far weights are from the joint program's optimality conditions; 0 when met.

    Two conditions: the shares cannot be traded for a larger Φ, and the loss weights are the best
    ones for these shares. The residual is relative: units of the statistics do not change it.

    Args:
        grad_var: (K,) as in ``joint_weights``.
        noise: (K,) as in ``joint_weights``.
        loss: (K,) loss weights to judge.
        sampling: (K,) shares to judge.
        importance: as in ``joint_weights``.
        sizes: as in ``joint_weights``.
        batch_size: as in ``joint_weights``.
        horizon: as in ``joint_weights``.
        lower: as in ``joint_weights``.
        upper: as in ``joint_weights``.

    Returns:
        The larger of the shares' relative gap between marginal values and the loss weights'
        distance Σ π |w − w*(p)| from the best ones.

    Raises:
        ValueError: as ``joint_weights``, or weights that are negative or of another length.
    """
    program = _program(grad_var, noise, importance, sizes, batch_size, horizon, lower, upper)
    size = program.sizes.size
    w = vector("loss", loss, size=size, minimum=0.0)
    return _residual(program, w, vector("sampling", sampling, size=size, minimum=0.0))


def _residual(program: _Program, loss: FloatArray, shares: FloatArray) -> float:
    trade = trade_residual(program.gain(shares), shares, program.lower, program.upper)
    distance = float(program.importance @ np.abs(loss - program.loss_weights(shares)))
    return max(trade, distance)


def _program(
    grad_var: ArrayLike,
    noise: ArrayLike,
    importance: ArrayLike,
    sizes: ArrayLike,
    batch_size: float,
    horizon: float,
    lower: ArrayLike,
    upper: ArrayLike,
) -> _Program:
    variance = vector("grad_var", grad_var, minimum=0.0)
    size = variance.size
    sigma = vector("noise", noise, size=size, minimum=0.0)
    pi = vector("importance", importance, size=size, minimum=0.0, strict=True)
    n = vector("sizes", sizes, size=size, minimum=0.0, strict=True, infinite=True)
    batch = number("batch_size", batch_size, minimum=0.0, strict=True)
    steps = horizon if horizon == math.inf else number("horizon", horizon, minimum=0.0, strict=True)
    lo, hi = share_bounds(lower, upper, size)
    noisy = sigma > 0.0
    quietest = sigma.min(where=noisy, initial=np.inf)
    strength = np.sqrt(variance / max(variance.max(), np.finfo(np.float64).tiny))
    strength /= np.where(noisy, sigma / quietest, _ZERO_NOISE)
    strength /= max(strength.max(), np.finfo(np.float64).tiny)
    return _Program(variance, sigma, pi / pi.sum(), n, 1.0 / batch / steps, lo, hi, strength)
