"""A table of what adaptmix sees and does, for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptmix.efficiency import predicted_gain, variance_ratio
from adaptmix.types import DomainStats, Weights


def report(
    names: Sequence[str], weights: Weights, stats: DomainStats, *, sampler: str = "stratified"
) -> str:
    """Return a table of weights and statistics, closed by the gain they predict.

    Args:
        names: K domain names.
        weights: the policy's.
        stats: what it went by.
        sampler: "stratified" or "multinomial".
    """
    header = ("domain", "seen", "share", "was", "loss weight", "grad std", "loss")
    rows = [
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
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    left = variance_ratio(weights.sampling, weights, stats, sampler=sampler)
    gain = predicted_gain(weights, stats, sampler=sampler) / left
    moved = np.abs(weights.loss - 1.0).max()
    lines.append(
        f"Sampling by these shares makes the gradient's variance {gain:.2f} times smaller; "
        f"loss weights differ from 1 by up to {moved:.2f}."
    )
    return "\n".join(lines)
