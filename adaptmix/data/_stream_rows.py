"""The rows of a mixture's streams: each is given once, at the step that draws it."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix.data._content import Packed, packed
from adaptmix.data._mixture import Mixture
from adaptmix.data._step_rows import StepRows
from adaptmix.data._stream import Place, Stream, is_split, splits
from adaptmix.data._stream_feed import Feed
from adaptmix.data._stream_readers import ReadAhead, Reader, ReadHere
from adaptmix.errors import StateError
from adaptmix.processes._sums import gather

Part = tuple[int, int]
"""(rank, processes)"""


class StreamRows:
    """The rows of all streams of a mixture, for this process.

    Each process reads every stream, and gives the rows that are its own; so all of them meet a
    stream's end at the same row, and any number of processes goes on with the same rows. Where
    nothing ends, a Hugging Face dataset that can be split is: each process then has a part of its
    own, which it begins anew when it has come to the end.

    Args:
        mixture: whose streams they are, and how many of each one's first rows are held out.
        seed: of what sources draw at random; they draw from the process's generators when None.
        ends: whether the end of a stream changes what is drawn.

    Attributes:
        gather: returns each process's value.
    """

    def __init__(self, mixture: Mixture, *, seed: int | None, ends: bool) -> None:
        self._names, self._streams, self._held = mixture.domains, mixture.streams, mixture.apart
        self._seed, self._ends = seed, ends
        self._held_rows: dict[int, list[Packed]] = {}  # what is done to a row stays with its batch
        self.gather: Callable[[Any], list[Any]] = gather
        self._feeds = {key: Feed(self._names[key], key) for key in self._streams}
        # The number of each domain's next row, at the steps that are drawn and not trained.
        self._next: dict[int, dict[int, int]] = {0: dict.fromkeys(self._streams, 0)}
        self._sizes: dict[int, tuple[int, int]] = {}  # and the step that found it out
        self._part: Part = (0, 1)
        self._split: frozenset[int] = frozenset()
        self._parts: dict[int, int] = dict.fromkeys(self._streams, 1)
        self._saved: str | None = None
        self._workers: tuple[int, Any] = (0, None)
        self._reading: Any = None

    @property
    def names(self) -> list[str]:
        """The names of the domains that are streams."""
        return [self._names[key] for key in self._streams]

    def read_with(self, num_workers: int, context: Any = None) -> None:
        """Say where streams are read, from the next iteration on.

        Args:
            num_workers: processes that read ahead, one for each stream at most; in this one if 0.
            context: of multiprocessing, or its name.
        """
        self._workers = (num_workers, context)

    def begin(self, step: int, part: Part) -> dict[int, int]:
        """Go to the rows of a step, and return the rows of the streams whose end is known there.

        Args:
            step: from which on steps are drawn.
            part: this process, and how many there are.

        Raises:
            StateError: a damaged state, or a saved run of another number of processes had its
                streams split.
            ValueError: a stream is split among processes and its end matters.
        """
        if self._saved is not None:
            self._open(self._saved, step, part)
        self._next = {at: numbers for at, numbers in self._next.items() if at <= step}
        self._sizes = {key: found for key, found in self._sizes.items() if found[1] < step}
        reading = (part, self._workers)
        moved, self._reading = reading != self._reading, reading
        if moved:
            self._divide(part)
            reader = self._reader()
        for key, feed in self._feeds.items():
            if moved:
                feed.read_from(reader, self._next[step][key])
            else:
                feed.go_to(self._next[step][key])
        return self._known

    @property
    def recognised(self) -> dict[str, str]:
        """By name of the domain, a hash of rows that are the same on every process."""
        shared = (key for key in self._feeds if key not in self._split)
        return {self._names[key]: self._feeds[key].recognised for key in shared}

    @property
    def _known(self) -> dict[int, int]:
        return {key: size for key, (size, _) in self._sizes.items()}

    def _divide(self, part: Part) -> None:
        """Settle which streams are split among processes."""
        processes = part[1]
        for key, dataset in self._streams.items():
            if processes > 1 and is_split(dataset):
                self._check_split(self._names[key], dataset, part)
        split = {
            key
            for key, dataset in self._streams.items()
            if processes > 1 and not self._ends and splits(dataset, processes)
        }
        for key, feed in self._feeds.items():
            parts = processes if key in split else 1
            if parts != self._parts[key] and feed.number:
                raise StateError(
                    f"stream {self._names[key]!r} was read in {self._parts[key]} parts, one for "
                    f"each process; got {parts}. Go on with as many processes."
                )
            self._parts[key] = parts
        self._part, self._split = part, frozenset(split)

    def _check_split(self, name: str, dataset: Any, part: Part) -> None:
        """Refuse a part of a stream that is another process's, or whose end matters."""
        before = "Pass the dataset as it is before split_dataset_by_node."
        given = (dataset._distributed.rank, dataset._distributed.world_size)
        if given != part:
            raise ValueError(
                f"stream {name!r} must be split as training is: this is process {part[0]} of "
                f"{part[1]}, and the stream is part {given[0]} of {given[1]}. {before}"
            )
        if self._ends:
            raise ValueError(
                f"stream {name!r} must not be split among processes where its end matters "
                "(when_exhausted=, max_epochs=): one process would meet it before the others. "
                f"{before}"
            )

    def _reader(self) -> Reader:
        streams = {
            key: Stream(
                self._names[key],
                dataset,
                seed=self._seed,
                part=self._part if key in self._split else (0, 1),
                held=self._held.get(key, 0),
            )
            for key, dataset in self._streams.items()
        }
        self._held_rows = {key: [*map(packed, it.apart)] for key, it in streams.items()}
        processes, context = self._workers
        if not processes:
            return ReadHere(streams)
        if context is None or isinstance(context, str):
            context = multiprocessing.get_context(context)
        return ReadAhead(streams, processes=processes, context=context)

    def find_ends(self, step: int, numbers: NDArray[np.int64]) -> dict[int, int] | None:
        """Return the rows of the streams whose end is known, if one was found before a row.

        Args:
            step: the optimizer step that wants to know.
            numbers: (K,) of the row of each domain, counted over all epochs.

        Returns:
            None where no other end was found.
        """
        before = len(self._sizes)
        for key, feed in self._feeds.items():
            if key not in self._sizes and self._reading is not None:
                feed.reach(int(numbers[key]))
                if feed.size is not None and feed.size < numbers[key]:
                    self._sizes[key] = (feed.size, step)
        return self._known if len(self._sizes) > before else None

    def take(self, drawn: StepRows, mine: NDArray[np.bool_]) -> tuple[StepRows, dict[int, Any]]:
        """Read this process's rows of a step; steps are taken in their order.

        Args:
            drawn: the step, whose rows of streams are their numbers in their domains.
            mine: (N,) which of its rows are this process's.

        Returns:
            The step, of which it is now known which rows come for the first time, and the rows
            of streams by their place in it.
        """
        if not self._feeds:
            return drawn, {}
        read: dict[int, Any] = {}
        fresh, after = drawn.fresh.copy(), dict(self._next[drawn.step])
        for key, feed in self._feeds.items():
            of_it = drawn.domains == key
            if drawn.held is not None:
                for place in np.flatnonzero(of_it & drawn.held & mine).tolist():
                    read[place] = self._held_rows[key][drawn.rows[place]]
                of_it &= ~drawn.held
            places = np.flatnonzero(of_it & (mine | (key not in self._split)))
            places = places[np.argsort(drawn.rows[places])]
            after[key] += places.size
            for place, (row, first) in zip(places.tolist(), feed.give(places.size), strict=True):
                fresh[place] &= first
                if mine[place]:
                    read[place] = row
        self._next[drawn.step + 1] = after
        return replace(drawn, fresh=fresh), read

    def forget_before(self, step: int) -> None:
        """Forget what only earlier steps needed."""
        for at in [at for at in self._next if at < step]:
            del self._next[at]
        for key, feed in self._feeds.items():
            feed.forget_before(self._next[step][key])

    def state(self, step: int) -> str:
        """Return where the rows of a step begin, on all processes, as text."""
        if self._saved is not None:
            return self._saved
        mine = {
            self._names[key]: feed.state(self._next[step][key]) for key, feed in self._feeds.items()
        }
        parts = self.gather(mine) if self._split else [mine]
        saved = {}
        for key in self._feeds:
            name, size = self._names[key], self._sizes.get(key)
            saved[name] = {
                "parts": [part[name] for part in parts[: self._parts[key]]],
                "size": size[0] if size is not None and size[1] < step else None,
            }
        return json.dumps(saved)

    def resumed(self, text: str) -> StreamRows:
        """Return the rows from where a saved run was, whose state is read as soon as one is wanted.

        Args:
            text: its state.
        """
        other = copy(self)
        other._saved, other._reading = text, None
        return other

    def _open(self, text: str, step: int, part: Part) -> None:
        """Read a saved state; streams that are not in it begin with their first row."""
        feeds, sizes, parts = {}, {}, {}
        try:
            saved = json.loads(text)
            for key in self._streams:
                name = self._names[key]
                known = saved.get(name, {"parts": [{}], "size": None})
                parts[key] = len(known["parts"])
                own = dict(known["parts"][part[0] if part[0] < parts[key] else 0])
                number, skip = own.pop("number", 0), own.pop("skip", 0)
                feeds[key] = Feed(name, key, number=number, place=Place(**own), skip=skip)
                if known["size"] is not None:
                    feeds[key].size = int(known["size"])
                    sizes[key] = (int(known["size"]), step - 1)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise StateError(f"streams must be the state of these streams; got {error}.") from error
        self._feeds, self._sizes, self._parts = feeds, sizes, parts
        self._next = {step: {key: feed.number for key, feed in feeds.items()}}
        self._saved = None
