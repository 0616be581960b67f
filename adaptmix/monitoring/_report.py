"""A table of what AdaptMix sees and does, for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptmix._types import DomainStats, Weights
from adaptmix.monitoring._efficiency import sampling_gain

# A change of the variance by less is none.
_NO_DIFFERENCE = 0.01


def report(
    names: Sequence[str],
    weights: Weights,
    stats: DomainStats,
    *,
    rows: int | None = None,
    sampler: str = "stratified",
    unit: str = "sample",
    observing: bool = False,
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
    """
    header = ("domain", "seen", "share", "was", "loss weight", "grad std", "loss")
    table = [
        (
            name,
            f"{stats.seen[i]:.0f}",
            f"{weights.sampling[i]:.3f}",
            f"{weights.importance[i]:.3f}",
            f"{weights.loss[i]:.3f}",
            f"{np.sqrt(stats.grad_var[i]):.4g}",
            f"{stats.loss_mean[i]:.4g}",
        )
        for i, name in enumerate(names)
    ]
    widths = [max(map(len, column)) for column in zip(header, *table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *table)
    ]
    gain = sampling_gain(weights, stats, rows=rows, sampler=sampler)
    moved = np.abs(weights.loss - 1.0).max()
    lines.append(f"{_verdict(gain)} Loss weights differ from 1 by up to {moved:.2f}.")
    lines.append(_objective(unit, observing=observing))
    return "\n".join(lines)


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


def _objective(unit: str, *, observing: bool) -> str:
    """Return which objective the run trains."""
    if observing:
        return (
            f"Observed only: trained on the sum over domains of importance times mean loss per "
            f"{unit}, sampled by importance; shares and loss weights are proposals."
        )
    return (
        "Trained on the sum over domains of importance times loss weight times mean loss per "
        f"{unit}."
    )
