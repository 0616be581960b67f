"""Weights for the domains that count, with the others' help: bias against variance, exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, vector
from adaptmix.solvers._arguments import number_of_draws, pair_of_bounds
from adaptmix.solvers._interior import Local, minimise
from adaptmix.solvers._waterfill import water_fill

_EPSILON = np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class TransferSolution:
    """Weights of the training objective, the shares to sample with, and what they cost.

    Args:
        objective: (K,) α on the simplex; the training objective is Σ α_i L_i, so that w = α / π
            where π > 0.
        sampling: (K,) p on the simplex.
        bias_sq: ‖Σ (α − π) μ‖², with what ``gram_error`` adds, grad².
        data_var: Σ α² v² / n, the variance that finitely many samples leave, grad².
        draw_var: Σ α² v² / (N p), the variance of N draws, grad².
        helps: (K,) the part of the error of α = π that each domain's weight takes away; 0 for
            domains that give weight away, and below 0 for one that does no more than balance
            others. Their sum is all that is taken away.
    """

    objective: FloatArray
    sampling: FloatArray
    bias_sq: float
    data_var: float
    draw_var: float
    helps: FloatArray

    @property
    def error(self) -> float:
        """Mean squared error of the training gradient for the gradient that counts, grad²."""
        return self.bias_sq + self.data_var + self.draw_var


def transfer_weights(
    grad_gram: ArrayLike,
    grad_var: ArrayLike,
    *,
    importance: ArrayLike,
    sizes: ArrayLike,
    draws: float = math.inf,
    weight_bounds: tuple[ArrayLike, ArrayLike] = (0.0, 1.0),
    share_bounds: tuple[ArrayLike, ArrayLike] = (0.0, 1.0),
    gram_error: ArrayLike | None = None,
) -> TransferSolution:
    """Minimise the mean squared error of the training gradient for the gradient that counts.

    Over the weights α of the training objective and the shares p, both on the simplex and within
    their bounds,

        minimise ‖Σ (α_i − π_i) μ_i‖² + Σ α_i² v_i² (1/n_i + 1/(N p_i)).

    The first term is the bias of training on other domains than those that count. It is measured,
    by the domains' mean gradients μ. The second is the variance of finite data, and of N draws.
    Domains with π = 0 are auxiliary: they get weight as far as they help.

    A Gram matrix of estimates may be indefinite. In the directions Σ (α − π) = 0, which alone
    matter, the nearest positive semi-definite matrix takes its place. The least of many noisy
    values is one that is noisy: ``gram_error`` adds Σ (α − π)² e² to the bias, a price for
    moving weight by gradients that are not known well. The scale of all gradients does not matter.

    Args:
        grad_gram: (K, K) inner products ⟨μ_i, μ_j⟩ of the domains' mean gradients, grad²,
            without the bias that noise adds to its diagonal.
        grad_var: (K,) variance of gradients within each domain v² ≥ 0, grad².
        importance: (K,) non-negative π, not all 0; normalised here.
        sizes: (K,) positive numbers of distinct samples n, may be infinite.
        draws: N > 0, the samples drawn in all steps over which gradients average: batch size
            times steps. Infinite when the noise of sampling does not count.
        weight_bounds: smallest and largest weight α, each a scalar or (K,).
        share_bounds: smallest and largest share p, each a scalar or (K,).
        gram_error: (K,) squared errors e² ≥ 0 of the estimated mean gradients, grad²; 0 when None.

    Returns:
        The weights, the shares and the three terms. Where every α v is 0, shares follow α.

    Raises:
        TypeError: an argument that is not numeric, or bounds that are not a pair.
        ValueError: an argument outside its range, or bounds that nothing meets.

    Source:
        Ours. Bias against variance: Ben-David et al., A theory of learning from different
        domains, 2010. Shares: Neyman (1934).

    Example:
        >>> gram = [[1.0, 1.0], [1.0, 1.0]]  # one and the same mean gradient
        >>> solution = transfer_weights(gram, [1.0, 1.0], importance=[1, 0], sizes=[25, 75])
        >>> solution.objective.round(6).tolist()
        [0.25, 0.75]
    """
    v_sq = vector("grad_var", grad_var, minimum=0.0)
    size = v_sq.size
    gram = _gram(grad_gram, size)
    doubt = np.zeros(size)
    if gram_error is not None:
        doubt = vector("gram_error", gram_error, size=size, minimum=0.0)
    pi = vector("importance", importance, size=size, minimum=0.0)
    if not pi.any():
        raise ValueError("importance must be > 0 for at least one domain; got 0 for all.")
    pi /= pi.max()
    n = vector("sizes", sizes, size=size, minimum=0.0, strict=True, infinite=True)
    unit = max(float(np.abs(gram).max()), float(v_sq.max()), float(doubt.max())) or 1.0
    program = _Program(
        _root(gram / unit, doubt / unit),
        pi / pi.sum(),
        v_sq / unit / n,
        np.sqrt(v_sq / unit),
        number_of_draws(draws),
        *pair_of_bounds("share_bounds", share_bounds, size),
    )
    alpha = minimise(program.around, *pair_of_bounds("weight_bounds", weight_bounds, size))
    shares = program.shares(alpha)
    bias_sq, data_var, draw_var = (unit * term for term in program.terms(alpha, shares))
    return TransferSolution(alpha, shares, bias_sq, data_var, draw_var, program.helps(alpha))


@dataclass(frozen=True, eq=False)
class _Program:
    """The program in α alone, in units of its largest statistic: the best shares are known."""

    root: FloatArray  # (R, K): ‖root (α − π)‖² is the squared bias
    importance: FloatArray
    data_var: FloatArray  # (K,) v²/n
    deviation: FloatArray  # (K,) v
    draws: float
    least: FloatArray  # (K,) smallest shares
    most: FloatArray

    @cached_property
    def gram(self) -> FloatArray:
        """(K, K) what is left of the Gram matrix."""
        gram: FloatArray = self.root.T @ self.root
        return gram

    def shares(self, alpha: FloatArray) -> FloatArray:
        scale = alpha * self.deviation
        return water_fill(scale if scale.any() else alpha, self.least, self.most)

    def terms(self, alpha: FloatArray, shares: FloatArray) -> tuple[float, float, float]:
        """Return the squared bias and both variances."""
        away = self.root @ (alpha - self.importance)
        spread = (alpha * self.deviation) ** 2
        drawn = np.divide(spread, shares, out=np.zeros_like(spread), where=spread > 0.0)
        return float(away @ away), float(alpha**2 @ self.data_var), float(drawn.sum() / self.draws)

    def helps(self, alpha: FloatArray) -> FloatArray:
        """Return (K,) parts of the error at π that each domain's weight takes away.

        Along the line from π to α a domain is charged the mean slope by its weight, against what
        the domains that give weight away save by it: Aumann and Shapley's value. It is exact where
        no share's bound binds.
        """
        before, least = self.around(self.importance), self.around(alpha)
        moved = alpha - self.importance
        given = np.maximum(-moved, 0.0)
        if not (before.value > 0.0 and given.any()):
            return np.zeros_like(alpha)
        slope = before.slope + least.slope  # half derivatives, so that this is their mean
        level = float(given @ slope) / float(given.sum())
        parts = np.maximum(moved, 0.0) * (level - slope)
        total, taken = float(parts.sum()), before.value - least.value
        if not (total > 0.0 and taken > 0.0):
            return np.zeros_like(alpha)
        scaled: FloatArray = parts * (taken / before.value / total)
        return scaled

    def around(self, alpha: FloatArray) -> Local:
        """Return the error at α and the best shares, with its derivatives by α."""
        shared, own = self._draw_curvature(alpha)
        diagonal = self.data_var + own
        away = self.root @ (alpha - self.importance)
        common = float(shared @ alpha)

        def curvature() -> FloatArray:
            matrix = self.gram + np.outer(shared, shared)
            np.einsum("ii->i", matrix)[:] += diagonal
            return matrix

        return Local(
            float(away @ away) + common**2 + float(diagonal @ alpha**2),
            self.root.T @ away + common * shared + diagonal * alpha,
            curvature,
        )

    def _draw_curvature(self, alpha: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (f, d): the variance of draws is (Σ f α)² + Σ d α² while the same bounds bind.

        Shares between their bounds are in proportion to α v and cost (Σ α v)² over what the
        others leave to them.
        """
        p, scale = self.shares(alpha), self.deviation / math.sqrt(self.draws)
        bound = ((p <= self.least) & (self.least > 0.0)) | (p >= self.most)
        left = float(p[~bound].sum())
        if not left > 0.0:  # no share can move
            bound, left = p > 0.0, 1.0
        shared = np.where(bound, 0.0, scale / math.sqrt(left))
        own = np.divide(scale**2, p, out=np.zeros_like(p), where=bound & (p > 0.0))
        return shared, own


def _gram(grad_gram: ArrayLike, size: int) -> FloatArray:
    gram = np.asarray(grad_gram, dtype=np.float64)
    if gram.shape != (size, size):
        raise ValueError(f"grad_gram must have shape ({size}, {size}); got {gram.shape}.")
    if not np.isfinite(gram).all():
        i, j = np.argwhere(~np.isfinite(gram))[0]
        raise ValueError(
            f"grad_gram must be finite; got {gram[i, j]} at ({i}, {j}). "
            "Leave out domains whose gradients are not known yet."
        )
    return gram


def _root(gram: FloatArray, doubt: FloatArray) -> FloatArray:
    """Return R with RᵀR the nearest positive semi-definite matrix, on directions of sum 0.

    The squared errors ``doubt`` come on top of it, as rows of their own.

    What all gradients have in common moves no weight: it is taken out first, so that small
    differences between large gradients keep their digits.
    """
    even = (gram + gram.T) / 2.0
    row = even.mean(axis=0)
    values, vectors = np.linalg.eigh(even - row - row[:, None] + row.mean())
    positive = values > values.size * _EPSILON * np.abs(even).max()
    root: FloatArray = np.sqrt(values[positive])[:, None] * vectors[:, positive].T
    return np.vstack((root, np.diag(np.sqrt(doubt)))) if doubt.any() else root
