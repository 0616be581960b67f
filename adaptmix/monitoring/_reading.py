"""Run records, read back by TensorBoard's own reader."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from os.path import commonpath, relpath
from pathlib import Path
from typing import Any

import numpy as np

from adaptmix.monitoring._names import safe_names
from adaptmix.monitoring._record import RunRecord, Series
from adaptmix.monitoring._texts import (
    CONFIGURATION,
    NOT_MEASURED,
    WARNING,
    Caution,
    read_configuration,
    read_warning,
)

_ROOT = "adaptmix/"
_EVENTS = "*tfevents*"
_TEXT = "/text_summary"
# What the Trainer writes of a metric "eval_loss_<domain>".
_TRAINER_HELDOUT = "eval/loss_"


def read_runs(paths: Iterable[str | PathLike[str]]) -> list[RunRecord]:
    """Return the runs whose records lie in or below the given directories.

    Args:
        paths: directories, each optionally as ``label=directory``; runs of one label are one group.

    Raises:
        ValueError: a directory that is not there, or in which no run was logged.
    """
    found: dict[tuple[str, Path], RunRecord] = {}
    for path in paths:
        label, folder = _labelled(path)
        if not folder.is_dir():
            raise ValueError(f"run must be a directory that log_to wrote; {folder} is not there.")
        records = list(_below(folder, label))
        if not records:
            raise ValueError(
                f"run must hold events of AdaptMix; none lie in or below {folder}. Log with "
                "controller.log_to(directory), or with a trainer that logs to TensorBoard."
            )
        found |= {(label, Path(record.folder).resolve()): record for record in records}
    return _told_apart(found)


def _told_apart(found: Mapping[tuple[str, Path], RunRecord]) -> list[RunRecord]:
    """Return the runs; names that several have, and nobody gave, become their paths."""
    records = list(found.values())
    named = [record.label for record in records]
    shared = commonpath([place for _, place in found])
    return [
        replace(record, label=relpath(place, shared))
        if not label and named.count(record.label) > 1
        else record
        for (label, place), record in zip(found, records, strict=True)
    ]


def _labelled(path: str | PathLike[str]) -> tuple[str, Path]:
    """Split ``label=directory``, unless a directory has that very name."""
    text = str(path)
    label, equals, rest = text.partition("=")
    if equals and not Path(text).exists():
        return label, Path(rest)
    return "", Path(text)


def _below(folder: Path, label: str) -> Iterator[RunRecord]:
    """Yield the runs in and below a directory; domains' directories belong to their run."""
    owned: set[Path] = set()
    for place in sorted({file.parent for file in folder.rglob(_EVENTS)}):
        if place in owned:
            continue
        run = _Run(place)
        owned |= run.parts
        if run.holds_a_record:
            yield run.record(label or _name(place, folder))


def _name(place: Path, folder: Path) -> str:
    inside = place.resolve().relative_to(folder.resolve())
    return str(inside) if inside.parts else place.resolve().name


class _Run:
    """The events of one directory and of the domains' below it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scalars, self._texts, self._seconds = _load(folder)
        configurations = self._texts.get(CONFIGURATION, [])
        self._configuration = read_configuration(configurations[-1]) if configurations else {}
        names = [str(name) for name in self._configuration.get("domains", [])]
        self._named = dict(zip(safe_names(names), names, strict=True))
        self.parts = {
            folder / label for label in self._named if any((folder / label).glob(_EVENTS))
        }

    @property
    def holds_a_record(self) -> bool:
        """Whether AdaptMix wrote here."""
        return bool(self._configuration) or any(tag.startswith(_ROOT) for tag in self._scalars)

    def record(self, label: str) -> RunRecord:
        """Return all of it."""
        by_domain: dict[str, dict[str, Series]] = {}
        overall: dict[str, Series] = {}
        for tag, series in self._scalars.items():
            if tag.startswith(_TRAINER_HELDOUT):
                name = tag.removeprefix(_TRAINER_HELDOUT)
                if name in self._named.values():
                    by_domain.setdefault("heldout_loss", {})[name] = series
                continue
            quantity, _, domain = tag.removeprefix(_ROOT).partition("/")
            if domain:
                by_domain.setdefault(quantity, {})[self._named.get(domain, domain)] = series
            elif tag.startswith(_ROOT):
                overall[quantity] = series
        for part in self.parts:
            name = self._named[part.name]
            for tag, series in _load(part)[0].items():
                by_domain.setdefault(tag.removeprefix(_ROOT), {})[name] = series
        known = {name: None for table in by_domain.values() for name in table}
        cautions = [read_warning(text) for text in self._texts.get(WARNING, [])]
        return RunRecord(
            label=label,
            folder=str(self._folder),
            configuration=self._configuration,
            domains=tuple(self._named.values()) or tuple(known),
            by_domain=by_domain,
            overall=overall,
            cautions=_distinct(caution for caution in cautions if caution is not None),
            unseen="".join(self._texts.get(NOT_MEASURED, [])[-1:]),
            seconds=self._seconds,
        )


def _distinct(cautions: Iterable[Caution]) -> tuple[Caution, ...]:
    return tuple(dict.fromkeys(cautions))


def _load(folder: Path) -> tuple[Mapping[str, Series], Mapping[str, list[str]], float]:
    """Return scalars and texts by tag, without what a trainer put before it, and the seconds."""
    from tensorboard.backend.event_processing.event_accumulator import (
        SCALARS,
        TENSORS,
        EventAccumulator,
    )

    events: Any = EventAccumulator(str(folder), size_guidance={SCALARS: 0, TENSORS: 0})
    log = logging.getLogger("tensorboard")
    log.addFilter(_other_than_resumed)
    try:
        events.Reload()
    finally:
        log.removeFilter(_other_than_resumed)
    tags = events.Tags()
    scalars, times = {}, []
    for tag in tags["scalars"]:
        kept = _own(tag)
        if kept is None:
            continue
        points = events.Scalars(tag)
        times += [points[0].wall_time, points[-1].wall_time]
        scalars[kept] = _series(points)
    texts: dict[str, list[str]] = {}
    for tag in tags["tensors"]:
        kept = _own(tag.removesuffix(_TEXT))
        if kept is not None and tag.endswith(_TEXT):
            entries = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
            texts[kept.removeprefix(_ROOT)] = entries
    return scalars, texts, max(times, default=0.0) - min(times, default=0.0)


def _other_than_resumed(entry: logging.LogRecord) -> bool:
    """Leave out that a run went on from an earlier step, which is no fault."""
    return "out of order event.step" not in entry.getMessage()


def _own(tag: str) -> str | None:
    """Return a tag as AdaptMix gave it, or None if it is another's."""
    if tag.startswith(_TRAINER_HELDOUT):
        return tag
    before, found, rest = tag.rpartition(_ROOT)
    return _ROOT + rest if found and (not before or before.endswith("/")) else None


def _series(points: Iterable[Any]) -> Series:
    """Return ascending steps; of several values at one step the last, of a run that went on."""
    table = {int(point.step): float(point.value) for point in points if np.isfinite(point.value)}
    steps = np.array(sorted(table), dtype=np.int64)
    return Series(steps, np.array([table[int(step)] for step in steps], dtype=np.float64))
