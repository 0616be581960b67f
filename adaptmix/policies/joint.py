"""Both weights from one convex program."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmix.checks import integer
from adaptmix.policies.base import floor_for, moment_for, pooled
from adaptmix.solvers import joint_weights
from adaptmix.types import Domains, DomainStats, Weights


@dataclass(frozen=True)
class Joint:
    """Loss and sampling weights that minimise the generalization and the SGD term together.

    Minimises Σ π² w² v² (1/n + κ/(B p)) with κ = 1 / horizon over both, for a fixed amount of
    curvature-weighted signal Σ π w v²/σ². Its shares are always the variance-aware ones for its
    own loss weights.

    By default it takes n ∝ π and the limit κ → 0: loss weights answer to noise alone, w ∝ 1/σ²,
    so that equal noise leaves the stated objective exactly as it is. ``use_sizes=True`` takes the
    true sizes and the finite horizon: right where all domains share one optimum, as in the linear
    theory, but it turns domains down that are merely slow to learn from.

    Args:
        use_sizes: solve the whole program with true sizes and a finite horizon.
        batch_size: rows of a step's global batch; the controller fills it in when None.
        horizon: optimizer steps of the run; the controller fills it in when None.
        lower: least share of a domain, in [0, 1/K]; None for one row per batch (see floor_for).
        upper: greatest share of a domain.
        sampler: "stratified" or "multinomial", whose shares answer to E‖∇ℓ‖² in place of v²; the
            controller fills it in when None.

    Raises:
        ValueError: at ``init``, ``use_sizes`` without batch size or horizon.

    Source:
        Ours, from the linear theory of Salmani et al., arXiv:2511.06913.
    """

    use_sizes: bool = False
    batch_size: int | None = None
    horizon: int | None = None
    lower: float | None = None
    upper: float = 1.0
    sampler: str | None = None

    @property
    def requires(self) -> frozenset[str]:
        """The noise, and the moment that fits the sampler."""
        return frozenset({moment_for(self.sampler), "noise"})

    def init(self, domains: Domains) -> dict[str, Any]:
        """Return the state: importance and the sizes to go by."""
        floor_for(self.lower, len(domains), self.batch_size)
        moment_for(self.sampler)
        for name in ("batch_size", "horizon"):
            value = getattr(self, name)
            if value is not None:
                integer(name, value, minimum=1)
            elif self.use_sizes:
                raise ValueError(
                    f"{name} must be given with use_sizes=True; got None. Pass "
                    f"Joint({name}=...), or let Controller.loader fill it in."
                )
        sizes = domains.sizes if self.use_sizes else domains.importance
        return {"importance": domains.importance, "sizes": sizes}

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the minimiser for the statistics estimated so far."""
        pi = state["importance"]
        variance = np.maximum(pooled(getattr(stats, moment_for(self.sampler)), stats.count), 0.0)
        if not variance.any():
            variance = np.ones_like(variance)  # no variance anywhere: nothing to gain
        solution = joint_weights(
            variance,
            pooled(stats.noise, stats.seen),
            importance=pi,
            sizes=state["sizes"],
            batch_size=self.batch_size or 1,
            horizon=(self.horizon or 1) if self.use_sizes else math.inf,
            lower=floor_for(self.lower, stats.num_domains, self.batch_size),
            upper=self.upper,
        )
        return Weights(solution.sampling, solution.loss, pi), state
