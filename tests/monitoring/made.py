"""Run records made of known figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptmix.monitoring._record import RunRecord, Series
from adaptmix.monitoring._texts import Caution

STEPS = 1200
UPDATES = np.arange(10, STEPS + 1, 10)
EVALUATIONS = np.arange(120, STEPS + 1, 120)


def constant(value: float) -> Series:
    """A quantity that does not move."""
    return Series(UPDATES, np.full(UPDATES.size, float(value)))


def falling(last: float, *, start: float = 3.0) -> Series:
    """A loss that falls in a straight line to ``last``."""
    return Series(EVALUATIONS, start + (last - start) * EVALUATIONS / STEPS)


def record(
    label: str = "run",
    *,
    mode: str = "adapt",
    seed: int = 0,
    losses: Sequence[float] | None = (2.0, 2.0, 2.0),
    errors: Sequence[float] | None = None,
    names: Sequence[str] = ("web", "code", "news"),
    gain: float = 1.2,
    attained: float = 1.17,
    proposed: float = 1.18,
    doubt: float | None = 0.02,
    shares: Sequence[float] = (0.5, 0.3, 0.2),
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    epochs: Sequence[float] = (1.0, 1.0, 1.0),
    noise: Sequence[float] | None = None,
    coverage: float = 1.0,
    overhead: float = 0.012,
    gradients: bool = True,
    cautions: Sequence[Caution] = (),
    configuration: Mapping[str, Any] | None = None,
) -> RunRecord:
    """A run of three domains of equal importance with constant statistics."""
    observing = mode == "observe"
    own = "proposed_" if observing else ""
    values: dict[str, Sequence[float] | None] = {
        f"{own}sampling_weight": shares,
        f"{own}loss_weight": weights,
        "epochs": epochs,
        "samples_seen": [100.0 * epoch for epoch in epochs],
        "noise": noise,
        "noise_error": None if noise is None else [0.01 * value for value in noise],
        "grad_std": [1.0] * len(names) if gradients else None,
        "grad_std_error": [0.1] * len(names) if gradients else None,
    }
    by_domain = {
        quantity: {name: constant(value) for name, value in zip(names, column, strict=True)}
        for quantity, column in values.items()
        if column is not None
    }
    if losses is not None:
        pairs = zip(names, losses, strict=True)
        by_domain["heldout_loss"] = {name: falling(value) for name, value in pairs}
    if errors is not None:
        by_domain["heldout_loss_error"] = {
            name: Series(EVALUATIONS, np.full(EVALUATIONS.size, value))
            for name, value in zip(names, errors, strict=True)
        }
    overall = {
        "predicted_gain": gain,
        "variance_ratio": gain if observing else gain / attained,
        "proposed_gain": proposed,
        "coverage": coverage,
        "overhead": overhead,
    }
    if doubt is not None:
        overall |= {"predicted_gain_error": doubt, "predicted_gain_bias": 0.0}
    return RunRecord(
        label=label,
        folder=f"runs/{label}",
        configuration={
            "mode": mode,
            "seed": seed,
            "policy": "variance_aware",
            "importance": [1.0 / len(names)] * len(names),
            "steps": STEPS,
            "unit": "sample",
            **(configuration or {}),
        },
        domains=tuple(names),
        by_domain=by_domain,
        overall={quantity: constant(value) for quantity, value in overall.items()},
        cautions=tuple(cautions),
        seconds=60.0,
    )


def seeds(label: str, levels: Sequence[float], **options: Any) -> list[RunRecord]:
    """One run per level, whose domains all have it as their last held-out loss."""
    return [
        record(f"{label}-{seed}", seed=seed, losses=[level] * 3, **options)
        for seed, level in enumerate(levels)
    ]
