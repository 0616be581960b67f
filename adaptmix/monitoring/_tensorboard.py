"""The record of a run, as TensorBoard keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

from adaptmix._warn_once import WarnOnce
from adaptmix.errors import LoggingWarning
from adaptmix.monitoring._eventfile import EventFile
from adaptmix.monitoring._names import safe_names
from adaptmix.monitoring._texts import (
    CONFIGURATION,
    NOT_MEASURED,
    WARNING,
    Caution,
    configuration_text,
    warning_text,
)
from adaptmix.probe._coverage import Coverage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PREFIX = "adaptmix/"
HELDOUT = "heldout_loss"
# TensorBoard gives each run a colour, so each domain is a run; with more a legend is no help.
_MOST_RUNS = 50


def write_unseen(
    writer: Any, root: str, coverage: Coverage | None, step: int | None = None
) -> None:
    """Write which modules the gradient probe does not see, if there are any."""
    if coverage is not None and coverage.unseen:
        writer.add_text(f"{root}{NOT_MEASURED}", _unseen_table(coverage), step)


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
            f"AdaptMix could not log ({type(error).__name__}: {error}). Training goes on. Free the "
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

    Files are opened at the first write. What a directory holds from ``step`` on (of a run that was
    stopped after its last checkpoint, or of an earlier run) is void then, so that nothing appears
    twice. After something could not be written, nothing more is.

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
        self._target = target
        self._warn = WarnOnce()
        self._labels = dict(zip(names, safe_names(names), strict=True))
        self._failed = False
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin anew at ``step``: later events that are there are void."""
        self._step = step
        self._files: _Files | None = None
        self._unseen: Mapping[str, str] = {}

    @property
    def folder(self) -> str:
        """Where the record is; "" when it could not be opened."""
        self._write(lambda _: None)
        return "" if self._files is None else self._files.folder

    def write(
        self, step: int, values: Mapping[str, float], *, coverage: Coverage | None = None
    ) -> None:
        """Write the scalars of one update, at the number of optimizer steps completed.

        Modules that ``coverage`` lists as not seen are written when they are others than before.
        """
        if coverage is not None and coverage.unseen != self._unseen:
            self._unseen = dict(coverage.unseen)
            self._write(lambda files: write_unseen(files.overall, PREFIX, coverage, step))
        self._write(lambda files: files.add_scalars(values, step))

    def write_evaluation(
        self,
        step: int,
        losses: Mapping[str, float],
        errors: Mapping[str, float] | None = None,
    ) -> None:
        """Write held-out losses by domain, and their standard errors where they are known."""
        tables = ((HELDOUT, losses), (f"{HELDOUT}_error", errors or {}))
        values = {
            f"{quantity}/{self._labels[name]}": value
            for quantity, table in tables
            for name, value in table.items()
        }
        self._write(lambda files: files.add_scalars(values, step))

    def write_texts(
        self, step: int, configuration: Mapping[str, Any], warnings: Sequence[Caution]
    ) -> None:
        """Write configuration and warnings, as far as they are new; flushed with what follows."""
        self._write(
            lambda files: files.texts.write(step, configuration, warnings),
            flush=False,
        )

    def flush(self) -> None:
        """Bring all that was written to the files."""
        self._write(lambda _: None)

    def _write(self, write: Callable[[_Files], None], *, flush: bool = True) -> None:
        """Write and flush: all that is written goes through here, and nothing after a failure."""
        if self._failed:
            return
        self._failed = True
        with tolerant(self._warn):
            if self._files is None:
                self._files = _Files(self._target, tuple(self._labels.values()), self._step)
            write(self._files)
            if flush:
                self._files.flush()
            self._failed = False


class DomainRuns:
    """One event file for each domain, in a folder of its own below a run's.

    Args:
        folder: of the run.
        labels: K names of the domains' folders; over 50 have none.
        step: what is there from this step on is void.
    """

    def __init__(self, folder: str, labels: Sequence[str], *, step: int) -> None:
        few = labels if len(labels) <= _MOST_RUNS else ()
        self._files = {label: EventFile(f"{folder}/{label}", step=step) for label in few}

    @property
    def there(self) -> bool:
        """Whether domains have folders."""
        return bool(self._files)

    def write(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Write ``<quantity>/<domain>`` as ``adaptmix/<quantity>`` of a domain's run.

        Returns:
            The values that are of no domain's run.
        """
        others: dict[str, float] = {}
        own: dict[str, dict[str, float]] = {}
        for tag, value in values.items():
            quantity, _, label = tag.partition("/")
            if label in self._files:
                own.setdefault(label, {})[quantity] = value
            else:
                others[tag] = value
        for label, table in own.items():
            self._files[label].add_summary(_summary(table), step)
        return others

    def flush(self) -> None:
        """Bring what was written to the disk."""
        for file in self._files.values():
            file.flush()


class _Files:
    """The event files of a record: one for the run, and one for each domain.

    Args:
        target: a directory, or a SummaryWriter.
        labels: K names of the domains' directories.
        step: what is there from this step on is void.
    """

    def __init__(self, target: Any, labels: Sequence[str], step: int) -> None:
        given = isinstance(target, (str, PathLike))
        self.overall = EventFile(str(target), step=step) if given else target
        self.folder = str(self.overall.log_dir)
        self.texts = RecordTexts(self.overall)
        self._domains = DomainRuns(self.folder, labels, step=step)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write values by tag: one event for each run, which is many times faster."""
        overall = self._domains.write(step, values)
        if overall:
            _event_writer(self.overall).add_summary(_summary(overall), step)

    def flush(self) -> None:
        """Bring what was written to the disk."""
        self._domains.flush()
        self.overall.flush()


def _summary(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(
        value=[
            Summary.Value(tag=f"{PREFIX}{tag}", simple_value=float(value))
            for tag, value in values.items()
        ]
    )


def _event_writer(writer: Any) -> Any:
    """Return what takes the summaries of an EventFile or a SummaryWriter."""
    return writer if isinstance(writer, EventFile) else writer._get_file_writer()
