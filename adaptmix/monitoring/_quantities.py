"""The numbers that one update has to show, by tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._simplex import effective_domains
from adaptmix._types import DomainStats, Weights
from adaptmix.monitoring._efficiency import Efficiency
from adaptmix.monitoring._names import safe_names
from adaptmix.monitoring._uncertainty import gain_error, grad_std_error, loss_error, noise_error
from adaptmix.probe._coverage import Coverage

WEIGHTS = ("sampling_weight", "loss_weight")
PROPOSED = "proposed_"
PER_DOMAIN = (
    "loss",
    "loss_error",
    "grad_std",
    "grad_std_error",
    "noise",
    "noise_error",
    "holdout_loss",
    "samples_seen",
    "epochs",
    "tokens_per_row",
)
# Those that every run has, with a probe and losses.
CHARTED = ("loss", "grad_std", "samples_seen", "epochs")
CHARTED_OVERALL = (
    "variance_ratio",
    "predicted_gain",
    "proposed_gain",
    "effective_domains",
    "coverage",
)
OVERALL = (
    "variance_ratio",
    "predicted_gain",
    "predicted_gain_error",
    "predicted_gain_bias",
    "proposed_gain",
    "effective_domains",
    "coverage",
    "overhead",
)


def weight_tags(*, observing: bool) -> tuple[str, ...]:
    """Return the tags of shares and loss weights; those that are only proposed say so."""
    return tuple(PROPOSED + tag for tag in WEIGHTS) if observing else WEIGHTS


def scalars(
    names: Sequence[str],
    *,
    weights: Weights,
    stats: DomainStats,
    in_force: FloatArray,
    sizes: FloatArray,
    lengths: FloatArray,
    drawing: Mapping[str, Any],
    per_token: bool = False,
    observing: bool = False,
    coverage: Coverage | None = None,
    overhead: float = np.nan,
    figures: Mapping[str, FloatArray] | None = None,
) -> dict[str, float]:
    """Return what one update has to show, by tag; what is not known is left out.

    Args:
        names: K domain names.
        weights: what the policy proposes.
        stats: what it went by.
        in_force: (K,) shares the next step is drawn with.
        sizes: (K,) rows of each domain.
        lengths: (K,) mean tokens per row; ones with unit "sample".
        drawing: how rows are drawn, as ``Efficiency`` takes it.
        per_token: whether the unit is "token".
        observing: whether the weights are only proposed.
        coverage: what the gradient probe sees; None without one.
        overhead: share of the time that measuring takes; NaN while not known.
        figures: (K,) what the policy believes, by name.
    """
    columns = (
        stats.loss_mean,
        loss_error(stats, lengths),
        np.sqrt(stats.grad_var),
        grad_std_error(stats),
        stats.noise,
        noise_error(stats),
        stats.holdout_loss,
        stats.seen,
        stats.seen / sizes,
        lengths if per_token else np.full_like(lengths, np.nan),
    )
    both = (weights.sampling, weights.loss)
    table = dict(zip(weight_tags(observing=observing), both, strict=True))
    table |= dict(zip(PER_DOMAIN, columns, strict=True))
    table |= figures or {}
    labels = safe_names(names)
    values = {
        f"{quantity}/{label}": float(value)
        for quantity, column in table.items()
        for label, value in zip(labels, column, strict=True)
    }
    efficiency = Efficiency(weights, stats, **drawing)
    gain = efficiency.predicted_gain
    doubt = gain_error(gain, weights, stats, sampler=str(drawing.get("sampler", "stratified")))
    overall = (
        efficiency.ratio(in_force),
        gain,
        doubt.error,
        doubt.bias,
        efficiency.sampling_gain,
        effective_domains(weights.sampling),
        np.nan if coverage is None else coverage.least,
        overhead,
    )
    values |= dict(zip(OVERALL, overall, strict=True))
    return {tag: float(value) for tag, value in values.items() if np.isfinite(value)}
