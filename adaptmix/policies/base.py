"""What a policy is, and what every policy needs."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from adaptmix.checks import FloatArray, choice, lower_share
from adaptmix.types import MOMENTS, Domains, DomainStats, Weights

State = Any
"""A policy's memory: numbers, strings, NumPy arrays, and dicts, lists and tuples of them."""


@runtime_checkable
class Policy(Protocol):
    """Weights from statistics, as a pure function of its arguments.

    Any object with these three members works as ``Controller(policy=...)``.
    """

    @property
    def requires(self) -> frozenset[str]:
        """The DomainStats fields it reads; a run that does not supply one is an error."""
        ...

    def init(self, domains: Domains) -> State:
        """Return the state before the first update."""
        ...

    def update(self, stats: DomainStats, state: State) -> tuple[Weights, State]:
        """Return the weights for these statistics, and the next state."""
        ...


@runtime_checkable
class Refinement(Protocol):
    """A stage of a chain that starts from the weights of the stage before it."""

    @property
    def requires(self) -> frozenset[str]:
        """The DomainStats fields it reads."""
        ...

    def init(self, domains: Domains) -> State:
        """Return the state before the first update."""
        ...

    def refine(self, weights: Weights, stats: DomainStats, state: State) -> tuple[Weights, State]:
        """Return weights made from ``weights``, and the next state."""
        ...


@runtime_checkable
class Preparation(Protocol):
    """A stage of a chain that changes statistics before a policy sees them."""

    @property
    def requires(self) -> frozenset[str]:
        """The DomainStats fields it cannot do without."""
        ...

    def init(self, domains: Domains) -> State:
        """Return the state before the first update."""
        ...

    def prepare(self, stats: DomainStats, state: State) -> tuple[DomainStats, State]:
        """Return statistics made from ``stats``, and the next state."""
        ...


def bind(policy: Any, **run: Any) -> Any:
    """Fill in what a policy or its parts left as None with what is known of the run.

    Args:
        policy: a policy; one that is no dataclass is returned as it is.
        run: ``batch_size``, rows of a step's global batch; ``horizon``, optimizer steps of the
            whole run; ``sampler``, "stratified" or "multinomial".
    """
    if isinstance(policy, tuple):
        return tuple(bind(part, **run) for part in policy)
    if not is_dataclass(policy) or isinstance(policy, type):
        return policy
    changes: dict[str, Any] = {}
    for field in fields(policy):
        value = getattr(policy, field.name)
        if value is None and field.name in run:
            changes[field.name] = run[field.name]
        elif isinstance(value, tuple) or is_dataclass(value):
            changes[field.name] = bind(value, **run)
    return replace(policy, **changes) if changes else policy


def moment_for(sampler: str | None) -> str:
    """Return the DomainStats field that a sampler's variance is made of.

    Stratified counts pay for the variance within domains alone, E‖∇ℓ − μ‖². Where the domain of
    each row is drawn independently, differences between domains add to it, and the uncentred
    E‖∇ℓ‖² takes its place.

    Raises:
        ValueError: an unknown sampler.
    """
    return MOMENTS[choice("sampler", sampler or "stratified", tuple(MOMENTS))]


def pooled(values: FloatArray, count: FloatArray) -> FloatArray:
    """Replace what is unknown (NaN) by the mean of what is known, weighted by count.

    Args:
        values: (K,) with NaN for domains that were not seen.
        count: (K,) samples behind each; infinite means exact.

    Returns:
        (K,) finite values; ones when nothing is known.
    """
    known = np.isfinite(values)
    if known.all():
        return values
    if not known.any():
        return np.ones_like(values)
    trust = np.where(np.isinf(count), 1.0, np.maximum(count, 0.0))[known]
    if not trust.any():
        trust = np.ones_like(trust)
    peak = values[known].max()
    scaled = values[known] / peak if peak > 0.0 else values[known]
    mean = float(np.average(scaled, weights=trust)) * (peak if peak > 0.0 else 1.0)
    return np.where(known, values, mean)


def within(stats: DomainStats, *, samples: float = 0.0) -> FloatArray:
    """Return ``grad_var`` as the second moment times the part of it that is within the domain.

    Two rows of a domain in one step tell its variance v², a single one only its second moment s².
    The part r = v² / s² differs less between domains, and over time, than either: with f degrees of
    freedom behind v², it is taken as r + (R − r) · k / (f + k), R = Σ f r / Σ f, R ≤ 1.

    Args:
        stats: statistics; without ``grad_sq`` of a domain, its ``grad_var`` stays.
        samples: k ≥ 0; at 0 only variances that are not known are replaced.

    Returns:
        (K,) variances, NaN where neither moment is known; ``grad_var`` where none is known.
    """
    variance, square, freedom = stats.grad_var, stats.grad_sq, stats.grad_freedom
    known = np.isfinite(variance)
    if samples == 0.0 and known.all():
        return variance
    both = known & (freedom > 0.0) & (square > 0.0)
    if both.all():
        return _leant(variance, square, freedom, samples)[0]
    if not both.any():
        return variance
    leant, part = _leant(variance[both], square[both], freedom[both], samples)
    filled: FloatArray = np.where(known, variance, square * part)
    filled[both] = leant
    return filled


def _leant(
    variance: FloatArray, square: FloatArray, freedom: FloatArray, samples: float
) -> tuple[FloatArray, float]:
    """Return variances whose part of the second moment leans on the mean part, and this part."""
    part = variance / square
    exact = freedom == np.inf if freedom.max() == np.inf else None
    trust = freedom if exact is None else np.where(exact, 1.0, freedom)
    mean = min(float(trust @ part) / float(trust.sum()), 1.0)
    if samples == 0.0:
        return variance, mean
    moved: FloatArray = square * (part + (mean - part) * (samples / (freedom + samples)))
    # An estimate that is exact stays to the last bit.
    return moved if exact is None else np.where(exact, variance, moved), mean


def moment(stats: DomainStats, sampler: str | None) -> FloatArray:
    """Return (K,) what a sampler's variance is made of: known, pooled where it is not, and ≥ 0."""
    values = within(stats) if moment_for(sampler) == "grad_var" else stats.grad_sq
    return np.maximum(pooled(values, stats.count), 0.0)


# A domain that counts must be drawn now and then, or no multiplier makes the gradient unbiased.
_LEAST_SHARE = 1e-6


def floor_for(lower: float | None, num_domains: int, batch_size: int | None) -> float:
    """Return the lowest share a policy gives any domain.

    When None: one row of every batch where at least two fit, so that multipliers can divide by
    realised shares, which is quieter; a tenth of an equal share otherwise, so that every
    estimate stays alive. Never 0: a domain without variance still has a mean to learn from.

    Raises:
        ValueError: ``lower`` outside [0, 1/K].
    """
    if lower is not None:
        return max(lower_share("lower", lower, num_domains), _LEAST_SHARE / num_domains)
    if batch_size is not None and batch_size >= 2 * num_domains:
        return 1.0 / batch_size
    return 0.1 / num_domains
