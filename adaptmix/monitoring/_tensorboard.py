"""The record of a run, as TensorBoard keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from adaptmix.errors import LoggingWarning, WarnOnce
from adaptmix.monitoring._names import safe_names
from adaptmix.monitoring._quantities import CHARTED, CHARTED_OVERALL, weight_tags
from adaptmix.monitoring._texts import (
    CONFIGURATION,
    NOT_MEASURED,
    WARNING,
    Caution,
    configuration_text,
    warning_text,
)
from adaptmix.probe._coverage import Coverage

PREFIX = "adaptmix/"
_HELDOUT = "heldout_loss"
# TensorBoard gives each run a colour, so each domain is a run; with more a legend is no help.
_MOST_RUNS = 50


def layout(
    names: Sequence[str],
    *,
    prefix: str = "",
    heldout: str | None = None,
    observing: bool = False,
) -> dict[str, dict[str, list[Any]]]:
    """Return a custom-scalars layout with all domains of a quantity on one chart.

    Args:
        names: K domain names.
        prefix: what a trainer puts before the tags.
        heldout: what stands before a domain's name in the tags of held-out losses; None when
            they are not logged.
        observing: whether weights are only proposed.
    """
    root = f"{prefix}{PREFIX}"
    labels = safe_names(names)
    charts = {
        quantity: [f"{root}{quantity}/{label}" for label in labels]
        for quantity in (*weight_tags(observing=observing), *CHARTED)
    }
    if heldout is not None:
        charts[_HELDOUT] = [f"{heldout}{name}" for name in names]
    charts |= {tag: [root + tag] for tag in CHARTED_OVERALL}
    return {"adaptmix": {title: ["Multiline", tags] for title, tags in charts.items()}}


def lay_out(
    writer: Any,
    names: Sequence[str],
    *,
    prefix: str = "",
    heldout: str | None = None,
    observing: bool = False,
    coverage: Coverage | None = None,
) -> None:
    """Write what stands beside the scalars of a trainer: their layout, and what is not seen.

    Args:
        writer: a SummaryWriter, or what writes like one.
        names: K domain names.
        prefix: as for ``layout``.
        heldout: as for ``layout``.
        observing: as for ``layout``.
        coverage: what the gradient probe sees; None without one.
    """
    charts = layout(names, prefix=prefix, heldout=heldout, observing=observing)
    writer.add_custom_scalars(charts)
    if coverage is not None and coverage.unseen:
        writer.add_text(f"{prefix}{PREFIX}{NOT_MEASURED}", _unseen_table(coverage))


class RecordTexts:
    """Writes configuration and warnings beside scalars, each once.

    Args:
        writer: a SummaryWriter, or what writes like one.
        prefix: what a trainer puts before the tags.
    """

    def __init__(self, writer: Any, *, prefix: str = "") -> None:
        self._writer, self._root = writer, f"{prefix}{PREFIX}"
        self._configuration: Mapping[str, Any] = {}
        self._told = 0

    def write(
        self, step: int, configuration: Mapping[str, Any], warnings: Sequence[Caution]
    ) -> None:
        """Write what has changed or come since the last call."""
        if configuration != self._configuration:
            self._configuration = dict(configuration)
            text = configuration_text(configuration)
            self._writer.add_text(f"{self._root}{CONFIGURATION}", text, step)
        for caution in warnings[self._told :]:
            self._writer.add_text(f"{self._root}{WARNING}", warning_text(caution), step)
        self._told = len(warnings)


def _unseen_table(coverage: Coverage) -> str:
    rows = [f"| `{name or 'the model'}` | {kind} |" for name, kind in coverage.unseen.items()]
    return "\n".join(
        ["| module with parameters that are not measured | type |", "|---|---|", *rows]
    )


@contextmanager
def tolerant(warn: WarnOnce) -> Iterator[None]:
    """Let training go on when something in here cannot be logged.

    Args:
        warn: of the run's logs.

    Warns:
        LoggingWarning: the first time.
    """
    try:
        yield
    except Exception as error:  # writers of all kinds raise all kinds
        warn(
            LoggingWarning,
            f"adaptmix could not log ({type(error).__name__}: {error}). Training goes on. Free the "
            "disk, or choose another directory.",
        )


class TensorBoardLog:
    """Writes a run record: scalars at every update, and the texts that explain them.

    TensorBoard has a colour for each run, so the domains are runs: below the directory, each has
    one of its own with the tags ``adaptmix/<quantity>``. Over 50 domains are tags instead,
    ``adaptmix/<quantity>/<domain>``. In mode "observe" weights are called ``proposed_…``.

    Over all domains: ``variance_ratio`` (the gradient's variance under the shares in force over the
    least possible), ``predicted_gain`` (the one under sampling by importance over the least
    possible) with its standard error and bias, ``proposed_gain`` (the same with the proposed
    shares), the effective number of domains, ``coverage`` (how much the probe sees of the
    parameters or, if that is less, of their gradient's squared norm), and ``overhead`` (the time
    that measuring adds, as a share of that without it). The page Text holds the configuration,
    all warnings, and the modules that the probe does not see.

    A directory that already holds events of later steps (of a run that was stopped after its last
    checkpoint) is cut off at ``step``, so that nothing appears twice. After something could not be
    written, nothing more is: a writer's thread ends with its first error.

    Args:
        target: a directory, or a SummaryWriter of the caller's.
        names: K domain names.
        step: optimizer steps completed so far.

    Attributes:
        folder: where the record is; "" when it could not be opened.
    """

    def __init__(
        self,
        target: str | PathLike[str] | SummaryWriter,
        names: Sequence[str],
        *,
        step: int,
    ) -> None:
        self._warn = WarnOnce()
        self._unseen: Mapping[str, str] = {}
        self._labels = dict(zip(names, safe_names(names), strict=True))
        self._domains: dict[str, SummaryWriter] = {}
        self._open = False
        self.folder = ""
        with tolerant(self._warn):
            self._writer: SummaryWriter = (
                target
                if isinstance(target, SummaryWriter)
                else SummaryWriter(str(target), purge_step=step or None)
            )
            folder = str(self._writer.log_dir)
            if len(names) <= _MOST_RUNS:
                self._domains = {
                    label: SummaryWriter(f"{folder}/{label}", purge_step=step or None)
                    for label in self._labels.values()
                }
            self._texts = RecordTexts(self._writer)
            self.folder, self._open = folder, True

    def write(
        self, step: int, values: Mapping[str, float], *, coverage: Coverage | None = None
    ) -> None:
        """Write the scalars of one update, at the number of optimizer steps completed.

        Modules that ``coverage`` lists as not seen are written when they are others than before.
        """
        if coverage is not None and coverage.unseen != self._unseen:
            self._unseen = dict(coverage.unseen)
            table = _unseen_table(coverage)
            self._write(lambda: self._writer.add_text(f"{PREFIX}{NOT_MEASURED}", table, step))
        self._write(lambda: self._add_scalars(values, step))

    def write_evaluation(
        self,
        step: int,
        losses: Mapping[str, float],
        errors: Mapping[str, float] | None = None,
    ) -> None:
        """Write held-out losses by domain, and their standard errors where they are known."""
        tables = ((_HELDOUT, losses), (f"{_HELDOUT}_error", errors or {}))
        values = {
            f"{quantity}/{self._labels[name]}": value
            for quantity, table in tables
            for name, value in table.items()
        }
        self._write(lambda: self._add_scalars(values, step))

    def write_texts(
        self, step: int, configuration: Mapping[str, Any], warnings: Sequence[Caution]
    ) -> None:
        """Write configuration and warnings, as far as they are new; flushed with what follows."""
        self._write(lambda: self._texts.write(step, configuration, warnings), flush=False)

    def flush(self) -> None:
        """Bring all that was written to the files."""
        self._write(lambda: None)

    def _flush(self) -> None:
        for writer in (self._writer, *self._domains.values()):
            writer.flush()

    def _write(self, write: Callable[[], None], *, flush: bool = True) -> None:
        """Write and flush: all that is written goes through here, and nothing after a failure."""
        if not self._open:
            return
        self._open = False
        with tolerant(self._warn):
            write()
            if flush:
                self._flush()
            self._open = True

    def _add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write values by tag: one event for each run, for that is many times faster."""
        entries: dict[SummaryWriter, list[Any]] = {}
        for tag, value in values.items():
            quantity, _, label = tag.partition("/")
            writer = self._domains.get(label, self._writer)
            shown = tag if writer is self._writer else quantity
            entry = Summary.Value(tag=f"{PREFIX}{shown}", simple_value=float(value))
            entries.setdefault(writer, []).append(entry)
        for writer, own in entries.items():
            writer._get_file_writer().add_summary(Summary(value=own), step)
