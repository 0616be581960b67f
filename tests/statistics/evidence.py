"""Sums of known losses and gradients, and snapshots of what they add up to."""

from __future__ import annotations

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._types import DomainStats
from adaptmix.statistics._running import RunningStatistics
from adaptmix.statistics._sums import FIELDS


def noise_sums(residual: FloatArray, expected: FloatArray, rows: FloatArray) -> list[FloatArray]:
    """Noise terms whose rows are alike."""
    products = (residual**2, residual * expected, expected**2)
    return [residual, expected, rows, *(product / np.maximum(rows, 1.0) for product in products)]


def loss_sums(*domains: FloatArray) -> FloatArray:
    """A window's sums, (fields, K), of the losses of each domain; noise terms l² and 1."""
    table = {name: np.zeros(len(domains)) for name in FIELDS}
    for i, losses in enumerate(domains):
        table["rows"][i] = table["tokens"][i] = table["count"][i] = len(losses)
        table["loss"][i], table["loss_sq"][i] = losses.sum(), np.square(losses).sum()
        table["residual"][i], table["expected"][i] = np.square(losses).sum(), len(losses)
    return np.stack(list(table.values()))


def gradient_sums(*domains: FloatArray) -> dict[str, FloatArray]:
    """What an observation tells of per-sample gradients, one (n, P) array per domain."""
    sums = np.stack([g.sum(0) for g in domains])
    return {
        "count": np.array([float(len(g)) for g in domains]),
        "square": np.array([np.square(g).sum() for g in domains]),
        "products": sums @ sums.T,
    }


def ones(stats: RunningStatistics, step: int) -> DomainStats:
    """A snapshot with one loss per row."""
    return stats.snapshot(step, lengths=np.ones(len(stats.seen)))


def gram(stats: DomainStats) -> FloatArray:
    assert stats.grad_gram is not None
    return stats.grad_gram
