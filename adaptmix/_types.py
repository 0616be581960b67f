"""Domains, their statistics and their weights: what the packages hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, vector
from adaptmix._text import rounded

# How the domains of a step's rows are drawn.
COUNTS = ("stratified", "multinomial")

# Weights arrive from float64 solvers; anything further off than this is a mistake, not rounding.
_SIMPLEX_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Domains:
    """The domains of a mixture, as policies see them.

    Args:
        names: K different names.
        sizes: (K,) number of distinct training rows; infinite where not known, and when None.
        importance: (K,) non-negative, how much each domain matters in the end (π); normalised to
            sum to one. A domain with 0 is auxiliary: it is there to help the others.
            Proportional to ``sizes`` when None.

    Raises:
        ValueError: no domain, a name twice, an empty domain, negative importance, or none that
            counts.
    """

    names: tuple[str, ...]
    sizes: FloatArray
    importance: FloatArray

    def __init__(
        self,
        names: Sequence[str],
        sizes: ArrayLike | None = None,
        importance: ArrayLike | None = None,
    ) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"names must be a sequence of strings; got {names!r}.")
        if not names:
            raise ValueError("names must hold at least one domain; got none.")
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            raise ValueError(f"names must differ; got {', '.join(twice)} more than once.")
        sizes = np.full(len(names), np.inf) if sizes is None else sizes
        size = vector("sizes", sizes, size=len(names), minimum=0.0, strict=True, infinite=True)
        if importance is None and np.isinf(size).any():
            raise ValueError("importance must be given where sizes are infinite; got None.")
        importance = size if importance is None else importance
        pi = vector("importance", importance, size=len(names), minimum=0.0)
        if not pi.any():
            raise ValueError("importance must be > 0 for at least one domain; got 0 for all.")
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "sizes", size)
        pi = pi / pi.max()  # so that the sum cannot overflow
        object.__setattr__(self, "importance", pi / pi.sum())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Names of the domains with importance 0."""
        return tuple(
            name for name, pi in zip(self.names, self.importance, strict=True) if pi == 0.0
        )


@dataclass(frozen=True, eq=False)
class Weights:
    """Sampling weights, and the weights of the training objective Σ α L.

    Where a domain counts, its weight α is importance times a loss weight, π w. An auxiliary domain,
    π = 0, may have any α, and its loss weight is NaN.

    Args:
        sampling: (K,) on the simplex, expected share of a batch drawn from each domain (p).
        loss: (K,) non-negative, scale of each domain's loss (w), with Σ importance · loss = 1; not
            read where importance is 0. None where ``objective`` is given.
        importance: (K,) on the simplex (π).
        objective: (K,) on the simplex (α); importance · loss when None.

    Raises:
        TypeError: both or neither of ``loss`` and ``objective``.
        ValueError: a vector off its simplex, or a domain that counts in the objective but is never
            sampled, for which no multiplier can be unbiased.

    Source:
        Salmani et al., Sampling and Loss Weights in Multi-Domain Training, arXiv:2511.06913.
    """

    sampling: FloatArray
    loss: FloatArray
    importance: FloatArray
    objective: FloatArray

    def __init__(
        self,
        sampling: ArrayLike,
        loss: ArrayLike | None,
        importance: ArrayLike,
        *,
        objective: ArrayLike | None = None,
    ) -> None:
        pi = vector("importance", importance, minimum=0.0)
        p = vector("sampling", sampling, size=pi.size, minimum=0.0)
        if (loss is None) == (objective is None):
            raise TypeError("Weights must be given either loss or objective, the other one None.")
        if objective is None:
            w = np.array(loss, dtype=np.float64)
            if w.shape == pi.shape and not pi.all():
                w[pi == 0.0] = 0.0  # not read
            w = vector("loss", w, size=pi.size, minimum=0.0)
            alpha, what = pi * w, "Σ importance · loss"
            w[pi == 0.0] = np.nan
        else:
            alpha, what = vector("objective", objective, size=pi.size, minimum=0.0), "Σ objective"
            w = _loss_weights(alpha, pi)
        for name, values in (("Σ importance", pi), ("Σ sampling", p), (what, alpha)):
            total = float(values.sum())
            if abs(total - 1.0) > _SIMPLEX_TOLERANCE:
                raise ValueError(f"{name} must be 1; got {total:.9g}. Normalise it first.")
        if not p.all() and (lost := (p == 0.0) & (alpha > 0.0)).any():
            where = int(lost.argmax())
            raise ValueError(
                f"sampling must be > 0 where {what[2:]} is; got 0 at {where}. "
                "Use a lower share, or a weight of 0."
            )
        object.__setattr__(self, "sampling", p)
        object.__setattr__(self, "loss", w)
        object.__setattr__(self, "importance", pi)
        object.__setattr__(self, "objective", alpha)

    @classmethod
    def proportional(cls, importance: ArrayLike) -> Weights:
        """Return the weights of a run without AdaptMix: p = π and w = 1."""
        pi = vector("importance", importance, minimum=0.0)
        return cls(pi, np.ones_like(pi), pi)

    def replaced(self, sampling: FloatArray, objective: FloatArray) -> Weights:
        """Return weights of the same importance, whose arrays are neither copied nor checked."""
        other = copy(self)
        object.__setattr__(other, "sampling", sampling)
        if objective is not self.objective:  # or else loss weights stay, to the last bit
            object.__setattr__(other, "objective", objective)
            object.__setattr__(other, "loss", _loss_weights(objective, self.importance))
        return other

    def __repr__(self) -> str:
        return (
            f"Weights(sampling={rounded(self.sampling)}, loss={rounded(self.loss)}, "
            f"importance={rounded(self.importance)})"
        )

    @property
    def multipliers(self) -> FloatArray:
        """(K,) factor on each sample's loss, m = α / p; 0 where nothing is sampled."""
        counts = self.objective
        return np.divide(counts, self.sampling, out=np.zeros_like(counts), where=counts > 0.0)

    @property
    def plain(self) -> FloatArray:
        """(K,) shares that sampling is compared with: importance, if no other domain counts.

        Where auxiliary domains have a weight, drawing by importance could not train the objective,
        so that the weights of the objective itself take its place.
        """
        borrowed = (self.objective > 0.0) & (self.importance == 0.0)
        return self.objective if borrowed.any() else self.importance

    def as_dict(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return ``{domain: {"sampling", "loss", "importance", "objective", "multiplier"}}``."""
        if len(names) != self.importance.size:
            raise ValueError(f"names must hold {self.importance.size} names; got {len(names)}.")
        columns = {
            "sampling": self.sampling,
            "loss": self.loss,
            "importance": self.importance,
            "objective": self.objective,
            "multiplier": self.multipliers,
        }
        return {
            name: {key: float(column[i]) for key, column in columns.items()}
            for i, name in enumerate(names)
        }


def _loss_weights(objective: FloatArray, importance: FloatArray) -> FloatArray:
    unknown = np.full_like(objective, np.nan)
    return np.divide(objective, importance, out=unknown, where=importance > 0.0)


@dataclass(frozen=True, eq=False)
class DomainStats:
    """Running estimates per domain. NaN means not known: not measured, or never seen.

    Every field is given by keyword; a field that is left out is unknown. Losses and gradients are
    those of the *unweighted* loss in the controller's unit. With unit "token", variances and second
    moments are per token: those of a row's summed loss, divided by its mean number of tokens.

    Args:
        count: (K,) effective number of samples behind the gradient estimates; inf when left out.
        seen: (K,) samples trained on since the run began.
        age: (K,) optimizer steps since the domain was last seen; infinite when never.
        loss_mean: (K,) mean per-sample loss.
        loss_var: (K,) variance of the per-sample loss over samples, loss².
        loss_count: (K,) effective number of samples behind ``loss_var``; ``seen`` when left out.
        noise: (K,) residual noise variance or dispersion σ² on samples not yet trained on.
        noise_count: (K,) effective number of samples behind ``noise``; ``seen`` when left out.
        noise_scatter: (K,) relative variance of ``noise`` from one row; from n rows it is this / n.
        holdout_loss: (K,) mean loss of held-out samples, which are never trained on.
        holdout_count: (K,) effective number of samples behind ``holdout_loss``; 0 when left out.
        grad_var: (K,) within-domain gradient variance v² = E‖∇ℓ − μ‖², grad².
        grad_freedom: (K,) effective degrees of freedom behind ``grad_var``; ``count`` if left out.
        grad_sq: (K,) second moment s² = E‖∇ℓ‖², grad².
        grad_sq_scatter: (K,) relative variance of ‖∇ℓ‖² over rows, Var ‖∇ℓ‖² / s⁴: an estimate of
            ``grad_sq`` from n rows has a relative variance of this over n.
        grad_sq_freedom: (K,) degrees of freedom behind ``grad_sq_scatter``; 0 when left out.
        grad_mean_sq: (K,) squared length ‖μ‖² of the mean gradient, without the bias that noise
            adds to it, so that it may come out negative; grad².
        grad_mean_pairs: (K,) effective pairs of rows behind ``grad_mean_sq``; inf when left out.
        tokens_per_row: (K,) mean supervised tokens T̄ per row with unit "token"; 1 when left out.
        grad_gram: (K, K) inner products ⟨μ_i, μ_j⟩ of mean gradients, grad², or None.

    Raises:
        ValueError: no field given, or fields of different lengths.
    """

    count: FloatArray
    seen: FloatArray
    age: FloatArray
    loss_mean: FloatArray
    loss_var: FloatArray
    loss_count: FloatArray
    noise: FloatArray
    noise_count: FloatArray
    noise_scatter: FloatArray
    holdout_loss: FloatArray
    holdout_count: FloatArray
    grad_var: FloatArray
    grad_freedom: FloatArray
    grad_sq: FloatArray
    grad_sq_scatter: FloatArray
    grad_sq_freedom: FloatArray
    grad_mean_sq: FloatArray
    grad_mean_pairs: FloatArray
    tokens_per_row: FloatArray
    grad_gram: FloatArray | None

    def __init__(
        self,
        *,
        count: ArrayLike | None = None,
        seen: ArrayLike | None = None,
        age: ArrayLike | None = None,
        loss_mean: ArrayLike | None = None,
        loss_var: ArrayLike | None = None,
        loss_count: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        noise_count: ArrayLike | None = None,
        noise_scatter: ArrayLike | None = None,
        holdout_loss: ArrayLike | None = None,
        holdout_count: ArrayLike | None = None,
        grad_var: ArrayLike | None = None,
        grad_freedom: ArrayLike | None = None,
        grad_sq: ArrayLike | None = None,
        grad_sq_scatter: ArrayLike | None = None,
        grad_sq_freedom: ArrayLike | None = None,
        grad_mean_sq: ArrayLike | None = None,
        grad_mean_pairs: ArrayLike | None = None,
        tokens_per_row: ArrayLike | None = None,
        grad_gram: ArrayLike | None = None,
    ) -> None:
        given = {
            "count": count,
            "seen": seen,
            "age": age,
            "loss_mean": loss_mean,
            "loss_var": loss_var,
            "loss_count": seen if loss_count is None else loss_count,
            "noise": noise,
            "noise_count": seen if noise_count is None else noise_count,
            "noise_scatter": noise_scatter,
            "holdout_loss": holdout_loss,
            "holdout_count": holdout_count,
            "grad_var": grad_var,
            "grad_freedom": count if grad_freedom is None else grad_freedom,
            "grad_sq": grad_sq,
            "grad_sq_scatter": grad_sq_scatter,
            "grad_sq_freedom": grad_sq_freedom,
            "grad_mean_sq": grad_mean_sq,
            "grad_mean_pairs": grad_mean_pairs,
            "tokens_per_row": tokens_per_row,
        }
        arrays = {k: np.array(v, dtype=np.float64) for k, v in given.items() if v is not None}
        gram = None if grad_gram is None else np.array(grad_gram, dtype=np.float64)
        shapes = {array.shape for array in arrays.values()}
        if gram is not None:
            shapes |= {(side,) for side in gram.shape} if gram.ndim == 2 else {gram.shape}
        if len(shapes) != 1 or len(shape := next(iter(shapes))) != 1 or shape[0] == 0:
            raise ValueError(
                "DomainStats fields must have shape (K,), grad_gram (K, K), with one K >= 1; "
                f"got shapes {sorted(shapes)}."
            )
        counts = ("seen", "loss_count", "noise_count", "holdout_count", "grad_sq_freedom")
        unknown = dict.fromkeys(counts, 0.0)
        unknown |= dict.fromkeys(("count", "grad_freedom", "grad_mean_pairs", "age"), np.inf)
        unknown["tokens_per_row"] = 1.0
        for name in given:
            default = np.full(shape, unknown.get(name, np.nan))
            object.__setattr__(self, name, arrays.get(name, default))
        object.__setattr__(self, "grad_gram", gram)

    @property
    def num_domains(self) -> int:
        """K."""
        return int(self.count.size)

    def replaced(self, **arrays: FloatArray) -> DomainStats:
        """Return these statistics with other (K,) fields, which are neither copied nor checked."""
        other = copy(self)
        for name, array in arrays.items():
            object.__setattr__(other, name, array)
        return other

    def __repr__(self) -> str:
        known = self.supplied() - {"grad_gram"}
        values = (
            f"{f.name}={rounded(getattr(self, f.name))}" for f in fields(self) if f.name in known
        )
        return f"DomainStats({', '.join(values)})"

    def supplied(self) -> frozenset[str]:
        """Return the names of the fields that are known for at least one domain."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return frozenset(
            name
            for name, value in values.items()
            if value is not None and not np.isnan(value).all()
        )
