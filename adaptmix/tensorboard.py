"""Weight trajectories as TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from adaptmix.checks import FloatArray
from adaptmix.efficiency import predicted_gain, variance_ratio
from adaptmix.simplex import effective_domains
from adaptmix.statistics.coverage import Coverage
from adaptmix.types import DomainStats, Weights

PREFIX = "adaptmix/"
_HELDOUT = "heldout_loss/"
_PER_DOMAIN = ("sampling_weight", "loss_weight", "grad_std", "loss", "samples_seen")
_OVERALL = ("variance_ratio", "predicted_gain", "effective_domains", "coverage")


def scalars(
    names: Sequence[str],
    *,
    weights: Weights,
    stats: DomainStats,
    in_force: FloatArray,
    sampler: str,
    rows: int | None = None,
    coverage: Coverage | None = None,
) -> dict[str, float]:
    """Return what one update has to show, by tag; what is not known is left out.

    Args:
        names: K domain names.
        weights: what the policy proposes.
        stats: what it went by.
        in_force: (K,) shares the next step is drawn with.
        sampler: "stratified" or "multinomial".
        rows: of a step's global batch; None when not known.
        coverage: what the gradient probe sees; None without one.
    """
    columns = (
        weights.sampling,
        weights.loss,
        np.sqrt(stats.grad_var),
        stats.loss_mean,
        stats.seen,
    )
    values = {
        f"{quantity}/{name}": float(value)
        for quantity, column in zip(_PER_DOMAIN, columns, strict=True)
        for name, value in zip(names, column, strict=True)
    }
    overall = (
        variance_ratio(in_force, weights, stats, rows=rows, sampler=sampler),
        predicted_gain(weights, stats, rows=rows, sampler=sampler),
        effective_domains(weights.sampling),
        np.nan if coverage is None else coverage.least,
    )
    values |= dict(zip(_OVERALL, overall, strict=True))
    return {tag: float(value) for tag, value in values.items() if np.isfinite(value)}


def layout(
    names: Sequence[str], *, prefix: str = "", heldout: str | None = None
) -> dict[str, dict[str, list[Any]]]:
    """Return a custom-scalars layout with all domains of a quantity on one chart.

    Args:
        names: K domain names.
        prefix: what a trainer puts before the tags.
        heldout: what stands before a domain's name in the tags of held-out losses; None when
            they are not logged.
    """
    root = f"{prefix}{PREFIX}"
    charts = {name: [f"{root}{name}/{domain}" for domain in names] for name in _PER_DOMAIN}
    if heldout is not None:
        charts["heldout_loss"] = [f"{heldout}{domain}" for domain in names]
    charts |= {tag: [root + tag] for tag in _OVERALL}
    return {"adaptmix": {title: ["Multiline", tags] for title, tags in charts.items()}}


def lay_out(
    writer: Any,
    names: Sequence[str],
    *,
    prefix: str = "",
    heldout: str | None = None,
    coverage: Coverage | None = None,
) -> None:
    """Write what stands beside the scalars: their layout, and what the probe does not see.

    Args:
        writer: a SummaryWriter, or what writes like one.
        names: K domain names.
        prefix: as for ``layout``.
        heldout: as for ``layout``.
        coverage: what the gradient probe sees; None without one.
    """
    writer.add_custom_scalars(layout(names, prefix=prefix, heldout=heldout))
    if coverage is not None and coverage.unseen:
        writer.add_text(f"{prefix}{PREFIX}not_measured", _unseen_table(coverage))


def _unseen_table(coverage: Coverage) -> str:
    rows = [f"| `{name or 'the model'}` | {kind} |" for name, kind in coverage.unseen.items()]
    return "\n".join(
        ["| module with parameters that are not measured | type |", "|---|---|", *rows]
    )


class TensorBoardLog:
    """Writes ``adaptmix/<quantity>/<domain>`` scalars at every update.

    Over all domains: ``variance_ratio`` (the gradient's variance under the shares in force over the
    least possible), ``predicted_gain`` (the one under sampling by importance over the least
    possible), the effective number of domains, and ``coverage`` (how much the probe sees of the
    parameters or, if that is less, of their gradient's squared norm). Modules that it does not see
    are listed under ``adaptmix/not_measured`` on the page Text.

    A custom-scalars layout puts all domains of a quantity on one chart. A directory that already
    holds events of later steps (of a run that was stopped after its last checkpoint) is cut off
    at ``step``, so that nothing appears twice.

    Args:
        target: a directory, or a SummaryWriter of the caller's.
        names: K domain names.
        step: optimizer steps completed so far.
    """

    def __init__(
        self,
        target: str | PathLike[str] | SummaryWriter,
        names: Sequence[str],
        *,
        step: int,
    ) -> None:
        self._writer: SummaryWriter = (
            target
            if isinstance(target, SummaryWriter)
            else SummaryWriter(str(target), purge_step=step or None)
        )
        self._unseen: Mapping[str, str] = {}
        lay_out(self._writer, names, heldout=f"{PREFIX}{_HELDOUT}")
        self._writer.flush()

    def write(
        self, step: int, values: Mapping[str, float], *, coverage: Coverage | None = None
    ) -> None:
        """Write the scalars of one update, at the number of optimizer steps completed.

        Modules that ``coverage`` lists as not seen are written when they are others than before.
        """
        if coverage is not None and coverage.unseen != self._unseen:
            self._unseen = dict(coverage.unseen)
            self._writer.add_text(f"{PREFIX}not_measured", _unseen_table(coverage), step)
        for tag, value in values.items():
            self._scalar(tag, value, step)
        self._writer.flush()

    def write_evaluation(self, step: int, losses: Mapping[str, float]) -> None:
        """Write held-out losses by domain."""
        for name, value in losses.items():
            self._scalar(f"{_HELDOUT}{name}", value, step)
        self._writer.flush()

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(f"{PREFIX}{tag}", float(value), step)
