"""The table by domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix.monitoring._comparison import Comparison
from adaptmix.monitoring._groups import Group
from adaptmix.monitoring._quantities import ERROR, Quantity, shown
from adaptmix.monitoring._record import RunRecord
from adaptmix.monitoring._words import figure, grouped, share, signed, with_margin


@dataclass(frozen=True)
class Row:
    """One domain.

    Attributes:
        name: of the domain.
        colour: its number in the legend; None when it is not drawn.
        cells: what stands under the header.
        sign: −1 when its held-out loss is lower than the baseline's, 1 when higher, else 0.
    """

    name: str
    colour: int | None
    cells: tuple[str, ...]
    sign: int = 0


@dataclass(frozen=True)
class Table:
    """Header and rows.

    Attributes:
        header: of the cells.
        rows: of the domains that are drawn.
        folded: of the others.
    """

    header: tuple[str, ...]
    rows: tuple[Row, ...]
    folded: tuple[Row, ...]


def table(
    groups: Sequence[Group], judged: Group, drawn: Sequence[str], comparison: Comparison | None
) -> Table:
    """Return the table by domain.

    Args:
        groups: all, the baseline first.
        judged: the group that the page is about.
        drawn: domains that have a colour, in order.
        comparison: with the baseline, or None.
    """
    run = judged.first
    proposed = "proposed share" if judged.observing else "share"
    columns: dict[str, list[str]] = {}
    if run.per_token:
        columns[f"{proposed} of rows"] = _moves(*_row_shares(judged))
        proposed += " of tokens"
    columns[proposed] = _moves(run.importance, _mean(judged, "sampling_weight"))
    columns["loss weight"] = [figure(value) for value in _mean(judged, "loss_weight")]
    for quantity in shown(run.by_domain):
        columns[quantity.column] = _with_errors(judged, quantity)
    columns |= _heldout(groups, run, comparison)
    kept = {name: cells for name, cells in columns.items() if any(cell != "–" for cell in cells)}
    rows = []
    for i, name in enumerate(run.domains):
        outcome = None if comparison is None else comparison.domains.get(name)
        colour = list(drawn).index(name) if name in drawn else None
        cells = tuple(cells[i] for cells in kept.values())
        rows.append(Row(name, colour, cells, 0 if outcome is None else outcome.sign))
    return Table(
        tuple(kept),
        tuple(row for row in rows if row.colour is not None),
        tuple(row for row in rows if row.colour is None),
    )


def _mean(group: Group, quantity: str) -> FloatArray:
    """Return (K,) means over the runs of a group."""
    mean: FloatArray = np.mean([run.final(quantity) for run in group.runs], 0)
    return mean


def _row_shares(group: Group) -> FloatArray:
    """Return (2, K) shares of rows at start and end, from shares of tokens."""
    run = group.first
    lengths = run.final("tokens_per_row")
    shares = np.array([run.importance, _mean(group, "sampling_weight")]) / lengths
    normal: FloatArray = shares / shares.sum(1, keepdims=True)
    return normal


def _moves(start: FloatArray, end: FloatArray) -> list[str]:
    return [
        "–" if not np.isfinite(last) else f"{share(first)} → {share(last)}"
        for first, last in zip(start, end, strict=True)
    ]


def _with_errors(group: Group, quantity: Quantity) -> list[str]:
    """Return means over runs, with the standard errors of the runs' own estimates."""
    values = _mean(group, quantity.tag)
    if quantity.share:
        return ["–" if not np.isfinite(value) else share(value) for value in values]
    errors = np.array([run.final(f"{quantity.tag}{ERROR}") for run in group.runs])
    of_means = np.linalg.norm(errors, axis=0) / len(errors)
    return [
        "–" if not np.isfinite(value) else with_margin(float(value), float(error))
        for value, error in zip(values, of_means, strict=True)
    ]


def _heldout(
    groups: Sequence[Group], run: RunRecord, comparison: Comparison | None
) -> dict[str, list[str]]:
    evaluated = any(one.of("heldout_loss") for group in groups for one in group.runs)
    quantity, name = ("heldout_loss", "held-out") if evaluated else ("loss", "training loss")
    columns = {
        f"{name}, {group.label}": [
            figure(value, digits=4) for value in _last_of(group, quantity, run.domains)
        ]
        for group in groups
    }
    if comparison is not None:
        changes = [comparison.domains.get(name) for name in run.domains]
        columns["change"] = [
            "–" if one is None else signed(one.change.value, one.change.margin) for one in changes
        ]
    return columns


def _last_of(group: Group, quantity: str, names: Sequence[str]) -> list[float]:
    """Return the mean over runs of a quantity's last values, by domain."""
    curves = [[run.of(quantity).get(name) for run in group.runs] for name in names]
    return [
        float(np.mean([series.last for series in runs if series is not None]))
        if any(series is not None for series in runs)
        else float("nan")
        for runs in curves
    ]


def rows_seen(run: RunRecord) -> str:
    """Return how many rows a run trained on."""
    seen = run.final("samples_seen")
    return grouped(float(np.nansum(seen))) if np.isfinite(seen).any() else "–"
