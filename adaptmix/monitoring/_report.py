"""A table of what AdaptMix sees and does, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._text import listed
from adaptmix._types import DomainStats, Weights
from adaptmix.monitoring._efficiency import sampling_gain

# A change of the variance by less is none.
_NO_DIFFERENCE = 0.01
# A smaller part of the objective is as good as none.
_DROPPED = 0.02


def report(
    names: Sequence[str],
    weights: Weights,
    stats: DomainStats,
    *,
    rows: int | None = None,
    sampler: str = "stratified",
    unit: str = "sample",
    observing: bool = False,
    figures: Mapping[str, FloatArray] | None = None,
) -> str:
    """Return a table of weights and statistics, closed by what they predict and what is trained.

    Args:
        names: K domain names.
        weights: the policy's.
        stats: what it went by.
        rows: of a step's global batch; None when not known.
        sampler: "stratified" or "multinomial".
        unit: "sample" or "token".
        observing: whether the weights are only proposed, and others are trained with.
        figures: (K,) what the policy believes, by name (``Transfer.figures``).
    """
    columns = {
        "domain": names,
        "seen": [f"{value:.0f}" for value in stats.seen],
        "share": [f"{value:.3f}" for value in weights.sampling],
        "was": [f"{value:.3f}" for value in weights.importance],
        "loss weight": _column(weights.loss, ".3f"),
        **_lent(weights, figures or {}, stats.seen),
        "grad std": _column(np.sqrt(stats.grad_var), ".4g"),
        "loss": _column(stats.loss_mean, ".4g"),
    }
    header, table = tuple(columns), zip(*columns.values(), strict=True)
    rows_of_cells = [header, *table]
    widths = [max(map(len, column)) for column in zip(*rows_of_cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows_of_cells
    ]
    if figures and "helps" in figures:
        # What shares do to the variance alone is not what they are chosen for.
        lines.append(_helped(figures, weights, names, stats.seen))
    else:
        gain = sampling_gain(weights, stats, rows=rows, sampler=sampler)
        moved = np.nanmax(np.abs(weights.loss - 1.0))
        lines.append(f"{_verdict(gain)} Loss weights differ from 1 by up to {moved:.2f}.")
    lines.append(_objective(unit, observing=observing, lent="helps" in (figures or {})))
    return "\n".join(lines)


def _column(values: FloatArray, form: str) -> list[str]:
    """Return values as texts, with a dash for what is not known."""
    return ["–" if np.isnan(value) else format(value, form) for value in values]


def _lent(
    weights: Weights, figures: Mapping[str, FloatArray], seen: FloatArray
) -> dict[str, list[str]]:
    """Return the columns of what domains do for those that count, where a policy tells it."""
    if "helps" not in figures:
        return {}
    return {
        "objective": [f"{value:.3f}" for value in weights.objective],
        "helps by": _column(np.where(seen > 0.0, figures["helps"], np.nan), ".1%"),
    }


def _helped(
    figures: Mapping[str, FloatArray], weights: Weights, names: Sequence[str], seen: FloatArray
) -> str:
    """Return what other domains do for those that count, and of which nothing is known."""
    drawn = seen > 0.0
    sentences = []
    if drawn.sum() > 1 or drawn.all():
        sentences.append(
            f"Other domains take {figures['helps'].sum():.0%} of the gradient's mean squared error "
            "away."
        )
    low = drawn & (weights.objective < _DROPPED)
    dropped = [name for name, here in zip(names, low, strict=True) if here]
    if dropped:
        told = listed(dropped, number=len(dropped))
        sentences.append(f"Below {_DROPPED:.0%} of the objective: {told}.")
    unknown = [name for name, here in zip(names, drawn, strict=True) if not here]
    if unknown:
        told = listed(unknown, number=len(unknown))
        sentences.append(f"Not drawn, so nothing is known of what they would do: {told}.")
    return " ".join(sentences)


def _verdict(gain: float) -> str:
    """Return what a gain means, in words that fit its direction."""
    if gain > 1.0 + _NO_DIFFERENCE:
        return f"These shares make the gradient's variance {gain:.2f} times smaller."
    if gain <= 0.0:
        return "Sampling by importance has no variance, and these shares have some."
    if 1.0 / gain > 1.0 + _NO_DIFFERENCE:
        return (
            f"These shares make the gradient's variance {1.0 / gain:.2f} times larger than "
            "sampling by importance does."
        )
    return "These shares leave the gradient's variance as it is with sampling by importance."


def _objective(unit: str, *, observing: bool, lent: bool) -> str:
    """Return which objective the run trains."""
    if observing:
        return (
            f"Observed only: trained on the sum over domains of importance times mean loss per "
            f"{unit}, sampled by importance; shares and loss weights are proposals."
        )
    if lent:
        return f"Trained on the sum over domains of objective times mean loss per {unit}."
    return (
        "Trained on the sum over domains of importance times loss weight times mean loss per "
        f"{unit}."
    )
