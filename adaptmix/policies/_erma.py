"""ERMA: loss weights that minimise a bound on the generalization gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray, number
from adaptmix._simplex import normalise
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run
from adaptmix.policies._moments import pooled
from adaptmix.solvers import gap_weights


@dataclass(frozen=True)
class ERMA:
    """Loss weights that minimise F(w) = (Σ π (1 − w) L)² + λ Σ π² w² Var N / n; sampling p = π.

    The first term is the bias of re-weighting. The second is the variance of the weighted empirical
    risk, times the number of rows N = Σ n. ``exact=False`` takes one multiplicative step towards
    the minimiser at each update, w ← w · exp(η (2 G L − 2 λ π w Var N / n)) with
    G = Σ π (1 − w) L, and renormalises. This is the paper's update written for u = π w, where it is
    mirror descent on F for any importance; for equal importance the two agree. ``exact=True`` goes
    to the minimiser at once.

    Args:
        exact: minimise instead of stepping.
        variance_penalty: λ ≥ 0; 1 is the paper's update with its two rates equal. λ N is the
            penalty of ``gap_weights``, which is near 1 for the gap of a single model, and near the
            number of free parameters for the largest gap in a class of models.
        rate: step size in (0, 1], relative to the largest that cannot increase F.
        lower: least loss weight, in [0, 1).
        use_sizes: whether n is the domains' true size. By default n ∝ π with the same total.

    Source:
        Salmani et al., arXiv:2511.06913, algorithm "ERMA"; the minimiser and the step size are
        ours.
    """

    exact: bool = False
    variance_penalty: float = 1.0
    rate: float = 0.5
    lower: float = 0.0
    use_sizes: bool = False

    requires = frozenset({"loss_mean", "loss_var"})

    def __post_init__(self) -> None:
        number("variance_penalty", self.variance_penalty, minimum=0.0)
        number("rate", self.rate, minimum=0.0, maximum=1.0)
        number("lower", self.lower, minimum=0.0, maximum=1.0)

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state: importance, sizes to go by and loss weights of 1."""
        pi = domains.importance
        sizes = domains.sizes / domains.sizes.sum() if self.use_sizes else pi
        return {"importance": pi, "sizes": sizes, "loss": np.ones_like(pi)}

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the next weights, and remember them."""
        pi, sizes = state["importance"], state["sizes"]
        mean = pooled(stats.loss_mean, stats.loss_count)
        variance = np.maximum(pooled(stats.loss_var, stats.loss_count), 0.0)
        if self.exact:
            loss = gap_weights(
                mean,
                variance,
                importance=pi,
                sizes=sizes,
                variance_penalty=self.variance_penalty,
                lower=self.lower,
            )
        else:
            step = self._exponent(mean, variance, state)
            loss = normalise(state["loss"] * np.exp(step - step.max()), importance=pi)
            loss = (1.0 - self.lower) * loss + self.lower
        return Weights(pi, loss, pi), {**state, "loss": loss}

    def _exponent(
        self, mean: FloatArray, variance: FloatArray, state: dict[str, Any]
    ) -> FloatArray:
        used = state["importance"] * state["loss"]
        # Renormalising cancels a constant, so losses may be taken from the middle of their range.
        spread = mean - (mean.max() + mean.min()) / 2.0
        curvature = self.variance_penalty * variance / state["sizes"]
        bias = float((state["importance"] - used) @ spread)
        # F is smooth relative to the entropy with twice this constant (largest Hessian entry).
        steepest = float(np.square(spread).max() + curvature.max())
        if steepest == 0.0:
            return np.zeros_like(mean)
        exponent: FloatArray = (self.rate / steepest) * (bias * spread - curvature * used)
        return exponent
