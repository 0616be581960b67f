"""What a step's gradient really varies by: draws of the real plan, at frozen parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from adaptmix import DomainStats, Weights
from adaptmix._checks import FloatArray
from adaptmix._loss import DomainLossScaler, RowLosses
from adaptmix.data import Layout
from adaptmix.data._draw import Draw
from adaptmix.data._mixture import Mixture
from adaptmix.data._plan import Plan

# Rows per domain: a step's draw without replacement is then as good as one with it.
POOL = 3000
DIMENSIONS = 6


@dataclass(frozen=True, eq=False)
class Task:
    """Domains whose rows have known gradients.

    Attributes:
        gradients: (K, POOL, D) of each row's loss: its mean over tokens, or with unit "token" the
            sum.
        tokens: (K, POOL) of each row; ones with unit "sample".
        importance: (K,).
        unit: "sample" or "token".
    """

    gradients: FloatArray
    tokens: FloatArray
    importance: FloatArray
    unit: str

    @classmethod
    def make(
        cls,
        K: int,
        *,
        mean: float,
        skew: float = 0.0,
        unit: str = "sample",
        alike: float = 0.0,
        spread: float = 1.0,
        seed: int = 0,
    ) -> Task:
        """Return domains with log-normal noise and mean gradients of length ``mean``.

        Args:
            K: number of domains.
            mean: length of every mean gradient.
            skew: importance is ∝ 1 / rank ** skew.
            unit: as above; with "token" mean lengths go from 1 to 32.
            alike: how much of the mean gradients all domains have in common, in [0, 1].
            spread: of the logarithm of v.
            seed: of everything.
        """
        rng = np.random.default_rng(seed)
        importance = np.arange(1.0, K + 1.0) ** -skew
        direction = rng.normal(size=(K, DIMENSIONS))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        direction = (1.0 - alike) * direction + alike * direction[0]
        direction *= mean / np.linalg.norm(direction, axis=1, keepdims=True)
        noise = rng.normal(size=(K, POOL, DIMENSIONS)) / np.sqrt(DIMENSIONS)
        deviation = rng.lognormal(0.0, spread, K)
        tokens = np.ones((K, POOL))
        if unit == "token":
            longest = rng.choice([1, 3, 8, 63], K)
            tokens = rng.integers(1, longest[:, np.newaxis] + 1, (K, POOL)).astype(float)
        own = direction[:, np.newaxis] + noise * deviation[:, np.newaxis, np.newaxis]
        gradients = own * tokens[:, :, np.newaxis]
        return cls(gradients, tokens, importance / importance.sum(), unit)

    @cached_property
    def lengths(self) -> FloatArray:
        """(K,) mean tokens per row."""
        lengths: FloatArray = self.tokens.mean(axis=1)
        return lengths

    @cached_property
    def per_row(self) -> FloatArray:
        """(K, POOL, D) what each row is worth in the mean gradient of its domain."""
        per_row: FloatArray = self.gradients / self.lengths[:, np.newaxis, np.newaxis]
        return per_row

    @cached_property
    def objective(self) -> FloatArray:
        """(D,) the gradient of Σ π L, in which L is a mean over rows or tokens."""
        objective: FloatArray = self.importance @ self.per_row.mean(axis=1)
        return objective

    def stats(self, *, gram: bool = True) -> DomainStats:
        """The true moments, in the controller's units."""
        mean = self.per_row.mean(axis=1)
        square = np.square(self.per_row).sum(axis=2).mean(axis=1)
        mean_sq = np.square(mean).sum(axis=1)
        return DomainStats(
            grad_var=(square - mean_sq) * self.lengths,
            grad_sq=square * self.lengths,
            grad_mean_sq=mean_sq,
            tokens_per_row=self.lengths,
            grad_gram=mean @ mean.T if gram else None,
        )

    def realised(
        self, sampling: FloatArray, *, rows: int, steps: int = 1000, sampler: str = "stratified"
    ) -> tuple[float, float, FloatArray]:
        """Return the step's gradient variance, its standard error, and the mean gradient's error.

        The last is in standard errors of each coordinate.
        """
        K = len(self.importance)
        mixture = Mixture({str(i): range(POOL) for i in range(K)})
        shares = sampling / self.lengths
        plan = Plan(mixture, shares=shares / shares.sum(), lag=steps, seed=1, counts=sampler)
        weights = Weights(sampling, np.ones(K), self.importance)
        scaler = DomainLossScaler(self.unit)
        flat, tokens = self.gradients.reshape(K * POOL, -1), self.tokens.reshape(-1)
        gradients = []
        for drawn in plan.steps(0, steps, size=rows):
            draw = Draw.build(
                domains=drawn.domains,
                rows=drawn.rows,
                fresh=drawn.fresh,
                domain_shares=drawn.domain_shares,
                row_shares=drawn.row_shares,
                ordinal=drawn.step,
                step=drawn.step,
                layout=Layout(rows),
                plan=plan,
            )
            losses = RowLosses(
                torch.zeros(rows, dtype=torch.float64), torch.from_numpy(tokens[drawn.rows])
            )
            _, factors = scaler.weighted(
                losses, draw, weights, lengths=self.lengths, micro_rows=rows
            )
            gradients.append(factors.numpy() @ flat[drawn.rows])
        error = np.array(gradients) - self.objective
        distance = np.square(error).sum(axis=1)
        bias = error.mean(axis=0) / (error.std(axis=0) / np.sqrt(steps) + 1e-300)
        return float(distance.mean()), float(distance.std() / np.sqrt(steps)), bias

    def least(self, rows: int) -> float:
        """A bound below every variance that shares can have where counts do not vary together.

        Written out anew: the kinked cost is convex and at most the real one, so bisection on the
        level finds its least.
        """
        stats = self.stats()
        a = self.importance
        v, s = (np.sqrt(m / self.lengths) for m in (stats.grad_var, stats.grad_sq))

        def counts(level: float) -> FloatArray:
            b: FloatArray = np.maximum(level * a * v, np.minimum(level * a * s, 1.0))
            return b

        low, high = 0.0, 1e12
        for _ in range(200):
            middle = (low + high) / 2.0
            low, high = (middle, high) if counts(middle).sum() < rows else (low, middle)
        b = counts(high)
        parts = np.where(b < 1.0, s**2 / b - (s**2 - v**2), v**2 / b)
        return float(a**2 @ parts)
