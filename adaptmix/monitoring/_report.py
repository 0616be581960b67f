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
        "loss weight": ["–" if np.isnan(value) else f"{value:.3f}" for value in weights.loss],
        **_lent(weights, figures or {}),
        "grad std": [f"{value:.4g}" for value in np.sqrt(stats.grad_var)],
        "loss": [f"{value:.4g}" for value in stats.loss_mean],
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
    gain = sampling_gain(weights, stats, rows=rows, sampler=sampler)
    lines.append(f"{_verdict(gain)} {_moved(weights, figures or {}, names)}")
    lines.append(_objective(unit, observing=observing, lent="helps" in (figures or {})))
    return "\n".join(lines)


def _lent(weights: Weights, figures: Mapping[str, FloatArray]) -> dict[str, list[str]]:
    """Return the columns of what domains do for those that count, where a policy tells it."""
    if "helps" not in figures:
        return {}
    return {
        "objective": [f"{value:.3f}" for value in weights.objective],
        "helps by": [f"{value:.1%}" for value in figures["helps"]],
    }


def _moved(weights: Weights, figures: Mapping[str, FloatArray], names: Sequence[str]) -> str:
    """Return how far the objective is from the stated one."""
    if "helps" not in figures:
        return f"Loss weights differ from 1 by up to {np.nanmax(np.abs(weights.loss - 1.0)):.2f}."
    dropped = [name for name, part in zip(names, weights.objective, strict=True) if part < _DROPPED]
    told = f" Below {_DROPPED:.0%} of the objective: {listed(dropped, number=len(dropped))}."
    return (
        f"Other domains take {figures['helps'].sum():.0%} of the gradient's mean squared error "
        f"away.{told if dropped else ''}"
    )


def _verdict(gain: float) -> str:
    """Return what a gain means, in words that fit its direction."""
    if gain > 1.0 + _NO_DIFFERENCE:
        return f"These shares make the gradient's variance {gain:.2f} times smaller."
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
