"""One stream: rows that can only be read in their order, from a saved place or from the start."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from zlib import crc32

from torch.utils.data import DataLoader, IterableDataset

from adaptmix._checks import integer
from adaptmix.data._content import seen
from adaptmix.data._randomness import seeded
from adaptmix.data._source_state import has_state, state_as_given
from adaptmix.errors import StateError

_log = logging.getLogger("adaptmix")
CHUNK = 16
"""Rows that are read at once. A place is kept for each such chunk, and not for each row."""

ENDLESS = 2**62
"""Stands for the number of rows of a stream that is not known to end."""


@dataclass(frozen=True)
class Place:
    """Where a chunk of a stream begins.

    Attributes:
        epoch: how often the stream was read to its end before.
        offset: rows of the epoch before the chunk.
        state: what the source itself calls its state there, in plain values; None where it has
            none, or where the epoch begins.
        seen: a hash of the chunk, by which it is recognised; empty where it is not known.
    """

    epoch: int = 0
    offset: int = 0
    state: Any = None
    seen: str = ""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of one epoch of a stream, next to each other.

    Attributes:
        place: where they begin.
        rows: up to ``CHUNK`` of them, without held-out ones.
        ended: whether the epoch has no further ones.
        before: rows of the epoch before the chunk, without held-out ones, if it is the first.
    """

    place: Place
    rows: list[Any]
    ended: bool
    before: int = 0


def is_stream(dataset: Any) -> bool:
    """Return whether a dataset is a torch ``IterableDataset`` or one of Hugging Face's."""
    return isinstance(dataset, IterableDataset) or is_hugging_face(dataset)


def check_stream(name: str, dataset: Any) -> None:
    """Check that a domain that is no map-style dataset is a stream that can begin anew.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(dataset, DataLoader) or not is_stream(dataset):
        raise TypeError(
            "datasets must be map-style, with a length, or streams: a torch IterableDataset or a "
            f"streaming dataset of Hugging Face; {name!r} is {type(dataset).__name__}."
        )
    if isinstance(dataset, Iterator):
        raise TypeError(
            f"datasets must be streams that begin anew with each iter(); {name!r} is an iterator, "
            f"{type(dataset).__name__}, which can be read once. Let __iter__ return a new one."
        )


def stream_sizes(names: Sequence[str], sizes: Mapping[str, int] | None) -> dict[str, int]:
    """Return the number of rows of each stream, as far as it was given.

    Args:
        names: of the domains that are streams.
        sizes: as for ``Mixture``.

    Raises:
        TypeError: a size that is no number.
        ValueError: a size below 1, or of what is no stream.
    """
    given = {} if sizes is None else sizes
    for name, size in given.items():
        if name not in names:
            streams = f"The streams are {', '.join(names)}." if names else "There is no stream."
            raise ValueError(f"sizes must be those of streams; got {name!r}. {streams}")
        integer(f"sizes[{name!r}]", size, minimum=1)
    return {name: given.get(name, ENDLESS) for name in names}


class Stream:
    """Reads one stream, chunk by chunk, and begins it anew at its end.

    What the source draws at random follows from the seed, its name, the epoch and the chunk, so
    that it reads the same rows each time. The seed of a Hugging Face dataset's ``shuffle`` is its
    own; its ``set_epoch`` is called at the beginning of each epoch.

    Args:
        name: of the domain.
        dataset: torch's or Hugging Face's.
        seed: of the run; rows draw from the process's generators when None.
        part: (rank, processes) where a Hugging Face dataset is split among processes.
        held: how many of its first rows are held out. In later epochs, whose order may be another,
            they are known by what they are.

    Attributes:
        apart: the rows that are held out.
    """

    def __init__(
        self,
        name: str,
        dataset: Any,
        *,
        seed: int | None,
        part: tuple[int, int] = (0, 1),
        held: int = 0,
    ) -> None:
        self.name, self._given, self._seed, self._part = name, dataset, seed, part
        self._held = held
        self._key = crc32(name.encode())
        self._source, self._first = dataset, None
        if not is_hugging_face(dataset) and has_state(dataset):
            self._first = state_as_given(dataset)
        self._rows: Iterator[Any] | None = None
        self._epoch = self._offset = 0
        self._lost: Place | None = None  # where to go first, as an error came on the way from there
        # They are read now: two iterations of a source that has its state on it are not apart.
        self.apart = self.first(held) if held else []
        self._known = {seen([row]) for row in self.apart}
        self._renew()

    def read(self) -> Chunk:
        """Return the next chunk; after an epoch's last one, the first of the next epoch.

        Raises:
            ValueError: an epoch without rows.
        """
        if self._lost is not None:
            self.seek(self._lost)
        # An iterator that raised looks as if it had come to its end, so it is not read again.
        self._lost = Place(self._epoch, self._offset)
        chunk = self._read()
        self._lost = None
        return chunk

    def _read(self) -> Chunk:
        epoch, offset = self._epoch, self._offset
        with seeded(self._seed, self._key, epoch, offset):
            if self._rows is None:
                self._rows = self._begin()
            state = self._state() if offset else None
            rows = list(islice(self._rows, CHUNK))
        self._offset += len(rows)
        ended = len(rows) < CHUNK
        if ended:
            if not self._offset:
                raise ValueError(_empty(self.name, epoch, self._part))
            self._epoch, self._offset, self._rows = epoch + 1, 0, None
        place = Place(epoch, offset, state)
        kept = self._kept(rows, place)
        place = replace(place, seen=seen(kept))
        return Chunk(place, kept, ended, max(0, offset - self._held))

    def first(self, number: int) -> list[Any]:
        """Return the first rows of the first epoch, up to ``number``; held-out ones among them."""
        stream = Stream(self.name, self._given, seed=self._seed, part=self._part)
        rows: list[Any] = []
        while len(rows) < number:
            chunk = stream.read()
            rows += chunk.rows
            if chunk.ended:
                break
        return rows[:number]

    def _kept(self, rows: list[Any], place: Place) -> list[Any]:
        """Return the rows of a chunk that are not held out."""
        if not self._held:
            return rows
        if place.epoch == 0:
            return rows[max(0, self._held - place.offset) :]
        return [row for row in rows if seen([row]) not in self._known]

    def seek(self, place: Place) -> None:
        """Go to where a chunk begins: by the source's own state, or by reading up to there.

        The chunk that a state leads to is compared with the one that was there before. Some
        sources, such as Hugging Face's ``shuffle`` with its buffer, do not come back to it.

        Raises:
            StateError: the stream has fewer rows than before.
        """
        self._lost = place
        if not (place.offset and place.state is not None and self._jump(place)):
            self._read_up_to(place)
        self._lost = None

    def _read_up_to(self, place: Place) -> None:
        self._renew()
        self._epoch, self._offset = place.epoch, 0
        if place.offset:
            _log.warning(
                "Reading %d rows of stream %r up to where the run was, for %s.",
                place.offset,
                self.name,
                "it does not say how to go on there"
                if place.state is None
                else "its own state does not lead back to the same rows",
            )
        while self._offset < place.offset:
            if self._read().ended:
                raise StateError(
                    f"stream {self.name!r} must have the rows it had before; it ended before row "
                    f"{place.offset} of epoch {place.epoch}. Give the same source, or begin anew."
                )

    def _jump(self, place: Place) -> bool:
        """Go to a place by the source's state; return whether its rows are the ones there."""
        try:
            self._load(place)
            same = self._read().place.seen == place.seen
            if same:
                self._load(place)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            _log.debug("The state of stream %r could not be loaded: %s", self.name, error)
            return False
        return same

    def _load(self, place: Place) -> None:
        self._renew()
        self._epoch, self._offset = place.epoch, place.offset
        saved = json.loads(place.state)
        if saved["dataset"] is not None:
            self._source.load_state_dict(saved["dataset"])
        with seeded(self._seed, self._key, place.epoch, place.offset):
            self._rows = rows = self._begin()
        if saved["rows"] is not None:
            rows.load_state_dict(saved["rows"])  # type: ignore[attr-defined]

    def _begin(self) -> Iterator[Any]:
        if hasattr(self._source, "set_epoch"):
            self._source.set_epoch(self._epoch)
        return iter(self._source)

    def _renew(self) -> None:
        """Take the source as it was given, without what was loaded into it or read of it."""
        self._rows = None
        if is_hugging_face(self._given):
            self._source = _own_copy(self._given, *self._part)
        elif self._first is not None:
            self._source.load_state_dict(deepcopy(self._first))

    def _state(self) -> str | None:
        """Return the source's own state as text; None where it has none that is plain."""
        kept = {
            "dataset": self._source.state_dict() if has_state(self._source) else None,
            "rows": self._rows.state_dict() if has_state(self._rows) else None,  # type: ignore[union-attr]
        }
        if kept["dataset"] is None and kept["rows"] is None:
            return None
        try:
            text = json.dumps(kept)
            return text if json.loads(text) == kept else None
        except (TypeError, ValueError):
            return None


def first_rows(name: str, dataset: Any, number: int) -> list[Any]:
    """Return the first rows of a stream, the same ones on every process.

    Args:
        name: of the domain.
        dataset: torch's or Hugging Face's.
        number: of rows, at most.
    """
    if is_split(dataset):
        dataset = copy(dataset)
        dataset._distributed = None
    return Stream(name, dataset, seed=0).first(number)


def is_hugging_face(dataset: Any) -> bool:
    """Return whether a dataset is a streaming one of Hugging Face's."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(dataset, library.IterableDataset)


def is_split(dataset: Any) -> bool:
    """Return whether a user has given this process a part of a Hugging Face dataset."""
    return is_hugging_face(dataset) and dataset._distributed is not None


def splits(dataset: Any, processes: int) -> bool:
    """Return whether each process can read a part of a dataset, and only that."""
    return is_split(dataset) or (is_hugging_face(dataset) and dataset.num_shards % processes == 0)


def _own_copy(given: Any, rank: int, processes: int) -> Any:
    """Return a Hugging Face dataset that is iterated apart from every other one.

    Datasets that come from one, by ``filter`` and the like, share where they are in it.
    """
    source = copy(given)
    source._ex_iterable = deepcopy(given._ex_iterable)
    if processes > 1 and not is_split(given):
        from datasets.distributed import split_dataset_by_node

        source = split_dataset_by_node(source, rank, processes)
    source.load_state_dict(None)
    return source


def _empty(name: str, epoch: int, part: tuple[int, int]) -> str:
    if epoch:
        return (
            f"stream {name!r} must begin anew with each iter(); it had no rows after epoch {epoch}."
            " Let __iter__ return a new iterator."
        )
    where = f" for process {part[0]} of {part[1]}" if part[1] > 1 else ""
    return f"datasets must not be empty; stream {name!r} has no rows{where}. Leave it out."
