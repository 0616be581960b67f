"""The rows of one stream by their number, and how to come back to each."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import Any

from adaptmix.data._stream import Place
from adaptmix.data._stream_readers import Reader


class Feed:
    """Gives the rows of one stream by their number, of which the run has given so many.

    Args:
        name: of the domain.
        key: of the stream at its reader.
        number: of the next row.
        place: where the chunk begins that this row is in, or that ends before it.
        skip: how many rows come before it there.
    """

    def __init__(
        self, name: str, key: int, *, number: int = 0, place: Place | None = None, skip: int = 0
    ) -> None:
        self._name, self._key = name, key
        self.number = number
        self._rows: deque[tuple[Any, bool]] = deque()
        self._chunks = deque([(number - skip, place or Place())])
        self._read = number - skip
        self._reader: Reader | None = None
        self.size: int | None = None
        self._failed = False

    def read_from(self, reader: Reader, number: int) -> None:
        """Let rows come from a reader from now on, from a row on that may have been given."""
        self._reader = reader
        self._seek(number)

    def go_to(self, number: int) -> None:
        """Go back to a row that was given before, unless it is the next one and can be read."""
        if number != self.number or self._failed:
            self._seek(number)

    def reach(self, number: int) -> None:
        """Read until so many rows were read, or the end of the stream."""
        while self._read < number and self.size is None:
            self._receive()

    def give(self, count: int) -> list[tuple[Any, bool]]:
        """Return the next rows, and of each whether it is given for the first time."""
        while self._read < self.number + count:
            self._receive()
        self.number += count
        return [self._rows.popleft() for _ in range(count)]

    def forget_before(self, number: int) -> None:
        """Forget where chunks begin, as far as they end before a row."""
        while len(self._chunks) > 1 and self._chunks[1][0] <= number:
            self._chunks.popleft()

    def state(self, number: int) -> dict[str, Any]:
        """Return how to come back to a row, in plain values."""
        start, place = self._chunk_of(number)
        return {"number": number, "skip": number - start, **asdict(place)}

    @property
    def recognised(self) -> str:
        """A hash of rows by which the stream is recognised; empty before any was read."""
        return self._chunks[0][1].seen

    def _chunk_of(self, number: int) -> tuple[int, Place]:
        return next(chunk for chunk in reversed(self._chunks) if chunk[0] <= number)

    def _seek(self, number: int) -> None:
        start, place = self._chunk_of(number)
        while self._chunks[-1][0] > start:
            self._chunks.pop()
        self._rows.clear()
        self.number = self._read = start
        assert self._reader is not None
        self._reader.seek(self._key, place)
        self.give(number - start)

    def _receive(self) -> None:
        assert self._reader is not None
        self._failed = True
        chunk = self._reader.read(self._key)
        self._failed = False
        place = chunk.place
        if chunk.rows:
            if self._chunks[-1][0] == self._read:
                self._chunks.pop()
            self._chunks.append((self._read, place))
            self._rows.extend((row, place.epoch == 0) for row in chunk.rows)
            self._read += len(chunk.rows)
        if chunk.ended and place.epoch == 0:
            self.size = chunk.before + len(chunk.rows)
