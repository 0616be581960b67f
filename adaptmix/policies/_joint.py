"""Both weights from one convex program."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray, choice, integer, number
from adaptmix._simplex import normalise
from adaptmix._types import Domains, DomainStats, Weights
from adaptmix.policies._base import Run
from adaptmix.policies._fgls import FGLS
from adaptmix.policies._gram import averaged, mean_error, unknown
from adaptmix.policies._least_variance import check_bounds, least_variance_shares
from adaptmix.policies._moments import moments, pooled
from adaptmix.solvers import JointSolution, fgls_weights, joint_weights, transfer_weights

# Updates that a curvature is averaged over, by how many samples each knows it from.
_MEMORY = 20
# What exact estimates count in that average.
_EXACT = 1e9
# With a price on bias, variances and noise this much smaller than the largest count as this much.
_NEXT_TO_NOTHING = 1e-6
# Of 0, 0.5, 1, 1.5, 2.5 and 5 %, what left the median risk at FGLS+VA's or below in every setting
# of examples/paper/linear.py (so did 1 %): less chases sampling error, more gives gains away. On
# 20 seeds that it was not chosen on, the median ratio to FGLS+VA's risk is 1.002 at most.
_WORTHWHILE = 0.015
# What is not known of gradients counts this much.
_DOUBT = 0.1
# A smaller gain is rounding.
_ROUNDING = 1e-9
_TINY = 1e-100


@dataclass(frozen=True)
class Joint:
    """Loss and sampling weights that minimise the generalization and the SGD term together.

    Minimises Σ π² w² v² (1/n + κ/(B p)) with κ = 1 / horizon over both, for a fixed amount of
    curvature-weighted signal Σ π w v²/σ². Its shares are always those of ``VarianceAware`` for its
    own loss weights.

    By default it takes n ∝ π and the limit κ → 0, and measures whether domains share an optimum.
    With α = π w and h ∝ v²/σ² its weights minimise, for Σ α h = 1,

        ‖Σ (α − π) μ‖² + Σ α² v² / n + 0.1 Σ (α − π)² v² / m,

    the bias that moving weight brings, by what the domains' mean gradients μ have across that of
    the stated objective; the variance; and a price for what m rows do not tell of μ. Where mean
    gradients agree, loss weights follow noise alone, w ∝ 1/σ². Where such weights would leave a
    larger error, bias included, a domain's misfit passes for noise, or its outputs are in other
    units: following it would do harm, and the stated objective stays. It also stays where noise is
    equal, and until all inner products are known. Classes that are labelled wrong at random pull
    elsewhere, too; ``FGLS`` turns them down.

    ``bias="ignored"`` leaves out the first and the last term: w ∝ 1/σ² whatever the gradients are.
    Noise must be in one unit then: see ``FGLS``.

    ``use_sizes=True``, beside ``bias="ignored"``, takes true sizes and the finite horizon, which
    is right where all domains share one optimum, as in the linear theory. Where they do not,
    domains that are slow to learn from lose weight, whatever their importance: on three real tasks
    the held-out loss rose by 24 %, 36 % and 6 %. Shares amplify the noise of estimates at a finite
    horizon. So the curvature v²/σ², which changes less than v² and σ² do, is averaged over updates,
    and v² is taken from it. The limit κ → 0 is taken where the program promises less than 1.5 %
    over it, and where a domain's curvature is not known yet.

    Args:
        use_sizes: solve the whole program with true sizes and a finite horizon.
        lower: as for ``VarianceAware``.
        upper: as for ``VarianceAware``.
        bias: "measured" or "ignored".
        bias_penalty: λ ≥ 0, what a shift of the mean loss by re-weighting costs: for a shift by
            the domains' root mean square loss, λ times the variance of proportional sampling.
        horizon: optimizer steps that the SGD error is averaged over; those of the run when None.

    Raises:
        ValueError: at ``init``, another ``bias``; ``use_sizes`` or ``bias_penalty`` where it is
            measured; ``use_sizes`` in a run whose batch size or horizon is not known.

    Source:
        Ours, from the linear theory of Salmani et al., arXiv:2511.06913.
    """

    use_sizes: bool = False
    lower: float | None = None
    upper: float = 1.0
    bias_penalty: float = 0.0
    horizon: int | None = None
    bias: str = "measured"

    @property
    def requires(self) -> frozenset[str]:
        """The noise, the gradients' moments, and losses where bias has a price."""
        losses = {"loss_mean"} if self.bias_penalty > 0.0 else set()
        products = {"grad_gram"} if self.bias == "measured" else set()
        return frozenset({"grad_sq", "noise", *losses, *products})

    @property
    def caution(self) -> str:
        """What to know before choosing it."""
        return FGLS(use_sizes=self.use_sizes).caution if self.bias == "ignored" else ""

    def init(self, domains: Domains, run: Run) -> dict[str, Any]:
        """Return the state: what is known of the run, and no curvature yet."""
        check_bounds(self.lower, self.upper, len(domains))
        if self.horizon is not None:
            run = replace(run, horizon=integer("horizon", self.horizon, minimum=1))
        for name in ("batch_size", "horizon"):
            if self.use_sizes and getattr(run, name) is None:
                raise ValueError(
                    f"{name} must be known with Joint(use_sizes=True); got None. Give it in "
                    f"Run({name}=...); a controller does so by itself."
                )
        number("bias_penalty", self.bias_penalty, minimum=0.0)
        measured = choice("bias", self.bias, ("measured", "ignored")) == "measured"
        for name in ("use_sizes", "bias_penalty"):
            if measured and getattr(self, name):
                raise ValueError(
                    f"{name} must be left out where bias is measured; got {getattr(self, name)}. "
                    f'Use Joint(bias="ignored", {name}={getattr(self, name)}).'
                )
        sizes = domains.sizes if self.use_sizes else domains.importance
        nothing = np.zeros(len(domains))
        return {
            "importance": domains.importance,
            "sizes": sizes,
            "rows": domains.sizes,
            "batch_size": run.batch_size,
            "horizon": run.horizon,
            "counts": run.counts,
            "curvature": nothing,
            "known": nothing,
            **unknown(len(domains)),
        }

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        """Return the minimiser for the statistics estimated so far."""
        variance = moments(stats)[state["counts"] == "multinomial"]
        noise = pooled(stats.noise, stats.noise_count)
        if not variance.any():
            variance = np.ones_like(variance)  # no variance anywhere: nothing to gain
        if self.bias == "measured":
            state = averaged(stats, state)
            loss = _paying_for_bias(variance, noise, stats, state)
            return Weights(self._shares(loss, stats, state), loss, state["importance"]), state
        loss = self._limit(variance, noise, stats, state)
        sampling = self._shares(loss, stats, state)
        if self.use_sizes:
            steady, state = _steadied(variance, noise, stats, state)
            if state["known"].all():
                whole = self._solution(steady, noise, state["horizon"], stats, state)
                if whole.promises(loss, sampling) >= _WORTHWHILE:
                    loss = whole.loss
                    sampling = self._shares(loss, _with_variance(stats, steady), state)
        return Weights(sampling, loss, state["importance"]), state

    def _limit(
        self, variance: FloatArray, noise: FloatArray, stats: DomainStats, state: dict[str, Any]
    ) -> FloatArray:
        """Return loss weights for κ → 0, which have a closed form without a penalty."""
        if self.bias_penalty > 0.0:
            return self._solution(variance, noise, math.inf, stats, state).loss
        sizes = state["sizes"] if self.use_sizes else None
        return fgls_weights(noise, importance=state["importance"], sizes=sizes)

    def _shares(self, loss: FloatArray, stats: DomainStats, state: dict[str, Any]) -> FloatArray:
        return least_variance_shares(
            state["importance"],
            loss,
            stats,
            lower=self.lower,
            upper=self.upper,
            rows=state["batch_size"],
            sampler=state["counts"],
        )

    def _solution(
        self,
        variance: FloatArray,
        noise: FloatArray,
        horizon: float,
        stats: DomainStats,
        state: dict[str, Any],
    ) -> JointSolution:
        """Return what solves the whole program."""
        pi, sizes, rows = state["importance"], state["sizes"], state["batch_size"] or 1
        losses, penalty = None, 0.0
        if self.bias_penalty > 0.0:
            variance, noise = _positive(variance), _positive(noise)
            losses = pooled(stats.loss_mean, stats.loss_count)
            # The variance of proportional sampling, for a bias of the losses' root mean square.
            spread = float((pi * variance) @ (pi / sizes + 1.0 / rows / horizon))
            penalty = self.bias_penalty * spread / max(float(pi @ losses**2), _TINY)
        return joint_weights(
            variance,
            noise,
            importance=pi,
            sizes=sizes,
            draws=rows * horizon,
            share_bounds=(self.lower or 0.0, self.upper),
            loss_mean=losses,
            bias_penalty=penalty,
        )


def _paying_for_bias(
    variance: FloatArray, noise: FloatArray, stats: DomainStats, state: dict[str, Any]
) -> FloatArray:
    """Return loss weights for κ → 0 that pay for the bias which is measured.

    For β = α h the program is that of ``transfer_weights``, on gradients divided by h.
    """
    pi, rows = state["importance"], state["rows"] * stats.tokens_per_row
    if not (state["evidence"] > 0.0).all():
        return np.ones_like(pi)
    variance, noise = _positive(variance), _positive(noise)
    curvature = variance / noise
    curvature /= float(pi @ curvature)
    used, n = pi * curvature, pi * rows.sum()
    gram = _across(state["gram"], pi) / np.outer(curvature, curvature)
    error = _DOUBT * mean_error(variance, rows, stats) / curvature**2
    # A part of the way always seems to pay a little, whether domains share an optimum or not.
    whole = normalise(used * fgls_weights(noise, importance=pi))
    away, spread = whole - used, variance / curvature**2 / n
    price = float(away @ gram @ away) + float(error @ away**2)
    if price + float(spread @ whole**2) >= (1.0 - _ROUNDING) * float(spread @ used**2):
        return np.ones_like(pi)
    solution = transfer_weights(
        gram, variance / curvature**2, importance=used, sizes=n, gram_error=error
    )
    return normalise(solution.objective / used, importance=pi)


def _across(gram: FloatArray, importance: FloatArray) -> FloatArray:
    """Return the inner products of what mean gradients have across that of the stated objective.

    What they have along it changes how fast the objective is trained, not what is trained.
    """
    along = gram @ importance
    length = float(importance @ along)
    return gram - np.outer(along, along) / length if length > 0.0 else gram


def _positive(values: FloatArray) -> FloatArray:
    """Return values no smaller than next to nothing: signal that is free could pay for any bias."""
    return np.maximum(values, max(_NEXT_TO_NOTHING * values.max(), _TINY))


def _with_variance(stats: DomainStats, variance: FloatArray) -> DomainStats:
    """Return statistics with these variances, and second moments that keep their ratio to them."""
    own, square = moments(stats)
    part = np.divide(own, square, out=np.ones_like(own), where=(own > 0.0) & (square > 0.0))
    return stats.replaced(grad_var=variance, grad_sq=variance / part)


def _steadied(
    variance: FloatArray, noise: FloatArray, stats: DomainStats, state: dict[str, Any]
) -> tuple[FloatArray, dict[str, Any]]:
    """Return v² as it follows from σ² and the averaged curvature, and the next state."""
    known = (variance > 0.0) & (noise > 0.0)
    now = np.log(np.where(known, variance, 1.0)) - np.log(np.where(known, noise, 1.0))
    # What was filled in for a domain that nobody has seen does not count.
    samples = np.where(np.isfinite(stats.noise), np.minimum(stats.count, _EXACT), 0.0)
    evidence = (1.0 - 1.0 / _MEMORY) * state["known"] + samples
    step = samples / np.maximum(evidence, _TINY)
    curvature = state["curvature"] + (now - state["curvature"]) * step
    steady = np.where(known, np.exp(curvature) * noise, variance)
    return steady, {**state, "curvature": curvature, "known": evidence}
