"""The joint problem: loss weights and shares that are best together, not one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, number, vector
from adaptmix.solvers._arguments import number_of_draws, pair_of_bounds
from adaptmix.solvers._program import Program


@dataclass(frozen=True, eq=False)
class JointSolution:
    """What ``joint_weights`` found.

    Args:
        loss: (K,) loss weights w, Σ importance · loss = 1.
        sampling: (K,) shares p, Σ p = 1.
        iterations: exact passes of water-filling: 1 without a bias penalty.
    """

    loss: FloatArray
    sampling: FloatArray
    iterations: int
    _program: Program = field(repr=False)

    @cached_property
    def value(self) -> float:
        """The objective at (loss, sampling), in units of ``grad_var`` per sample."""
        return self._program.value(self.loss, self.sampling)

    def promises(self, loss: FloatArray, sampling: FloatArray) -> float:
        """Return which part of other weights' error this solution saves, in [0, 1]."""
        other, own = (
            self._program.error(w, p) for w, p in ((loss, sampling), (self.loss, self.sampling))
        )
        return max(0.0, 1.0 - own / other) if own < other else 0.0


def joint_weights(
    grad_var: ArrayLike,
    noise: ArrayLike,
    *,
    importance: ArrayLike,
    sizes: ArrayLike,
    draws: float = math.inf,
    share_bounds: tuple[ArrayLike, ArrayLike] = (0.0, 1.0),
    loss_mean: ArrayLike | None = None,
    bias_penalty: float = 0.0,
) -> JointSolution:
    """Minimise the finite-sample and the SGD error over loss weights and shares together.

    The convex program, with κ' = 1 / draws and h_i = v_i²/σ_i²,

        minimise Σ π_i² w_i² v_i² (1/n_i + κ'/p_i) + λ (Σ π_i w_i (L_i − Σ π L))²
        subject to Σ π_i w_i h_i fixed, w ≥ 0, Σ p = 1, p within its bounds,

    and then Σ π w = 1 by rescaling w, has an exact solution. With s_i = v_i/σ_i² the best weights
    for given shares are π_i w_i v_i ∝ s_i / (1/n_i + κ'/p_i) when λ = 0. What is left is to
    maximise Φ(p) = Σ s_i² n_i p_i / (p_i + κ' n_i), concave and separable: p_i = clip(n_i (θ s_i −
    κ'), lower_i, upper_i), by water-filling. The bias penalty adds a multiple of L_i − Σ π L to
    h_i; the multiple is the root of a scalar increasing function, found by Brent's method.

    As κ' → 0 the loss weights become ``fgls_weights`` when λ = 0 and, when all h are equal,
    ``gap_weights`` with the gradient's variance for the loss's and 1/λ for the variance penalty.
    For every κ' and λ the shares are ``neyman_shares`` of π w v.

    At the limits: a domain without share has loss weight 0. Domains with σ = 0 share all the loss
    weight, and the shares among themselves first. Infinitely many samples leave a domain's SGD
    term only; where several are equally worth sampling, they share by upper − lower. A
    domain with v = 0 needs no share beyond its lower bound, and when all v are 0 the shares are
    the ones nearest to uniform.

    Args:
        grad_var: (K,) within-domain gradient variance v_i² ≥ 0, grad²; positive when λ > 0.
        noise: (K,) residual noise or dispersion σ_i² ≥ 0; positive when λ > 0.
        importance: (K,) positive π_i; normalised here.
        sizes: (K,) positive numbers of samples n_i, may be infinite.
        draws: samples drawn in all steps, > 0: batch size times steps. Infinite when the noise of
            sampling does not count.
        share_bounds: smallest and largest share p, each a scalar or (K,).
        loss_mean: (K,) mean loss L_i, for the bias penalty.
        bias_penalty: λ ≥ 0, grad² / loss²: what re-weighting costs that shifts the mean loss.

    Returns:
        The weights, and the value of the objective there.

    Raises:
        ValueError: an argument outside its range, bounds that no shares meet, or a bias penalty
            without ``loss_mean``.

    Source:
        The program extends Salmani et al., arXiv:2511.06913, which tunes one weight at a time;
        its solution is this library's own.

    Example:
        >>> solution = joint_weights(
        ...     [4.0, 1.0], [4.0, 1.0], importance=[0.5, 0.5], sizes=[100, 100]
        ... )
        >>> solution.loss, solution.sampling.round(3)
        (array([0.4, 1.6]), array([0.333, 0.667]))
    """
    penalty = number("bias_penalty", bias_penalty, minimum=0.0)
    # Signal without a price, or without an end, could pay for any bias.
    strict = penalty > 0.0
    variance = vector("grad_var", grad_var, minimum=0.0, strict=strict)
    size = variance.size
    sigma = vector("noise", noise, size=size, minimum=0.0, strict=strict)
    pi = vector("importance", importance, size=size, minimum=0.0, strict=True)
    pi /= pi.sum()
    n = vector("sizes", sizes, size=size, minimum=0.0, strict=True, infinite=True)
    kappa = 1.0 / number_of_draws(draws)
    lower, upper = pair_of_bounds("share_bounds", share_bounds, size)
    excess = np.zeros(size)
    if loss_mean is not None:
        excess = vector("loss_mean", loss_mean, size=size)
        excess -= pi @ excess
    elif penalty > 0.0:
        raise ValueError(
            f"loss_mean must be given with bias_penalty > 0; got None with {penalty:g}. "
            "Pass the domains' mean losses."
        )
    problem = Program(variance, sigma, pi, n, kappa, lower, upper, excess, penalty)
    multiplier, passes = problem.multiplier
    tilt = problem.tilt(multiplier)
    p = problem.shares(tilt)
    w = problem.loss_weights(p, tilt)
    return JointSolution(w, p, passes + 1, problem)
