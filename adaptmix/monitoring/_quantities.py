"""The numbers that one update has to show, by tag."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix._simplex import effective_domains
from adaptmix._types import DomainStats, Weights
from adaptmix.monitoring._efficiency import efficiency
from adaptmix.monitoring._names import safe_names
from adaptmix.monitoring._uncertainty import gain_error, grad_std_error, loss_error, noise_error
from adaptmix.probe._coverage import Coverage

WEIGHTS = ("sampling_weight", "loss_weight")
PROPOSED = "proposed_"
ERROR = "_error"


@dataclass(frozen=True, eq=False)
class Update:
    """What is known after an update of the weights.

    Attributes:
        names: K domain names.
        weights: what the policy proposes.
        stats: what it went by.
        in_force: (K,) shares the next step is drawn with.
        sizes: (K,) rows of each domain.
        lengths: (K,) mean tokens per row; ones with unit "sample".
        drawing: how rows are drawn, as ``efficiency`` takes it.
        per_token: whether the unit is "token".
        observing: whether the weights are only proposed.
        coverage: what the gradient probe sees; None without one.
        overhead: share of the time that measuring takes; NaN while not known.
        figures: (K,) what the policy believes, by name.
    """

    names: tuple[str, ...]
    weights: Weights
    stats: DomainStats
    in_force: FloatArray
    sizes: FloatArray
    lengths: FloatArray
    drawing: Mapping[str, Any]
    per_token: bool = False
    observing: bool = False
    coverage: Coverage | None = None
    overhead: float = np.nan
    figures: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def unknown(self) -> FloatArray:
        """(K,) NaN."""
        return np.full(len(self.names), np.nan)


@dataclass(frozen=True, eq=False)
class Quantity:
    """A figure of each domain that is recorded, and shown, wherever it is known.

    A new one is a line of ``QUANTITIES``: it is logged then, read back, and a column of the page.
    So are figures of a policy that have no line here, under their own names.

    Attributes:
        tag: its name in the record; that of its standard errors ends with ``_error``.
        of: returns (K,) values, NaN where they are not known.
        error: returns (K,) standard errors; None without.
        column: its heading in the table of the page; not shown there when "".
        share: whether it is shown in percent.
    """

    tag: str
    of: Callable[[Update], FloatArray]
    error: Callable[[Update], FloatArray] | None = None
    column: str = ""
    share: bool = False


QUANTITIES = (
    Quantity(
        "loss",
        lambda update: update.stats.loss_mean,
        lambda update: loss_error(update.stats, update.lengths),
    ),
    Quantity("samples_seen", lambda update: update.stats.seen),
    Quantity("epochs", lambda update: update.stats.seen / update.sizes, column="epochs"),
    Quantity(
        "grad_std",
        lambda update: np.sqrt(update.stats.grad_var),
        lambda update: grad_std_error(update.stats),
        column="gradient std",
    ),
    Quantity(
        "noise",
        lambda update: update.stats.noise,
        lambda update: noise_error(update.stats),
        column="noise",
    ),
    Quantity(
        "holdout_loss", lambda update: update.stats.holdout_loss, column="loss of held-out rows"
    ),
    Quantity(
        "tokens_per_row",
        lambda update: update.lengths if update.per_token else update.unknown,
    ),
    Quantity(
        "objective",
        # With pins and refinements in it, which the policy's own figure lacks.
        lambda update: (
            update.weights.objective if "objective" in update.figures else update.unknown
        ),
        column="share of the objective",
        share=True,
    ),
    Quantity(
        "helps",
        lambda update: update.figures.get("helps", update.unknown),
        column="helps the target by",
        share=True,
    ),
)
_LISTED = frozenset(quantity.tag for quantity in QUANTITIES)
# What the page shows in other places.
_ELSEWHERE = {*WEIGHTS, *(PROPOSED + tag for tag in WEIGHTS), "heldout_loss"}
# Those that every run has, with a probe and losses.
CHARTED = ("loss", "grad_std", "samples_seen", "epochs")
CHARTED_OVERALL = (
    "variance_ratio",
    "predicted_gain",
    "proposed_gain",
    "effective_domains",
    "coverage",
)


def shown(tags: Iterable[str]) -> list[Quantity]:
    """Return what the page has a column for, of what was recorded."""
    unlisted = [tag for tag in tags if tag not in _LISTED | _ELSEWHERE and not tag.endswith(ERROR)]
    own = [Quantity(tag, lambda update: update.unknown, column=tag) for tag in unlisted]
    return [quantity for quantity in QUANTITIES if quantity.column] + own


def weight_tags(*, observing: bool) -> tuple[str, ...]:
    """Return the tags of shares and loss weights; those that are only proposed say so."""
    return tuple(PROPOSED + tag for tag in WEIGHTS) if observing else WEIGHTS


def scalars(update: Update) -> dict[str, float]:
    """Return what one update has to show, by tag; what is not known is left out."""
    values: dict[str, float] = {}
    labels = safe_names(update.names)
    for tag, column in _columns(update):
        for label, value in zip(labels, column.tolist(), strict=True):
            values[f"{tag}/{label}"] = value
    values |= _overall(update)
    return {tag: float(value) for tag, value in values.items() if math.isfinite(value)}


def _columns(update: Update) -> list[tuple[str, FloatArray]]:
    weights = (update.weights.sampling, update.weights.loss)
    columns = list(zip(weight_tags(observing=update.observing), weights, strict=True))
    for quantity in QUANTITIES:
        columns.append((quantity.tag, quantity.of(update)))
        if quantity.error is not None:
            columns.append((quantity.tag + ERROR, quantity.error(update)))
    columns += [(tag, of) for tag, of in update.figures.items() if tag not in _LISTED]
    return columns


def _overall(update: Update) -> dict[str, float]:
    weights, stats, drawing = update.weights, update.stats, update.drawing
    found = efficiency(update.in_force, weights, stats, **drawing)
    sampler = str(drawing.get("sampler", "stratified"))
    doubt = gain_error(found.predicted, weights, stats, sampler=sampler)
    coverage = update.coverage
    return {
        "variance_ratio": found.ratio,
        "predicted_gain": found.predicted,
        "predicted_gain_error": doubt.error,
        "predicted_gain_bias": doubt.bias,
        "proposed_gain": found.proposed,
        "effective_domains": effective_domains(weights.sampling),
        "coverage": np.nan if coverage is None else coverage.least,
        "overhead": update.overhead,
    }
