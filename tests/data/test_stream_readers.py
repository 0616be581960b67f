"""Processes that read ahead give the rows that this process would read, and its errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptmix.data._content import Packed, unpacked
from adaptmix.data._stream import Place, Stream
from adaptmix.data._stream_readers import ReadAhead, ReadHere
from tests import streams

FORK = multiprocessing.get_context("fork")


def sources() -> dict[int, Stream]:
    given = [streams.Plain(0, 45), streams.Shuffled(100, 45), streams.hugging_face(200, 45)]
    return {key: Stream(f"d{key}", source, seed=0) for key, source in enumerate(given)}


def test_rows_are_those_that_this_process_would_read() -> None:
    here, ahead = ReadHere(sources()), ReadAhead(sources(), processes=2, context=FORK)
    for key in (0, 1, 2, 0, 0, 1, 0, 0, 2, 2, 2, 1, 1, 1):
        expected, chunk = here.read(key), ahead.read(key)
        assert (chunk.place, chunk.ended) == (expected.place, expected.ended)
        assert [unpacked(row) for row in chunk.rows] == expected.rows
        assert all(isinstance(row, Packed) for row in chunk.rows)
    for reader in (here, ahead):
        reader.seek(1, Place(1, 16))
    assert [unpacked(row) for row in ahead.read(1).rows] == here.read(1).rows


class Failing(streams.Plain):
    def __iter__(self) -> Iterator[int]:
        yield from range(20)
        raise OSError("the bucket is gone")


def test_errors_of_a_stream_arrive_as_they_are() -> None:
    ahead = ReadAhead({0: Stream("web", Failing(0, 50), seed=0)}, processes=1, context=FORK)
    ahead.read(0)
    with pytest.raises(OSError, match="the bucket is gone"):
        ahead.read(0)


class Dying(streams.Plain):
    def __iter__(self) -> Iterator[int]:
        yield from range(20)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_told_by_the_name_of_its_stream() -> None:
    ahead = ReadAhead({0: Stream("web", Dying(0, 50), seed=0)}, processes=1, context=FORK)
    ahead.read(0)
    with pytest.raises(RuntimeError, match="reads stream 'web' was ended from outside"):
        ahead.read(0)


class Tensors(streams.Plain):
    def __iter__(self) -> Iterator[Any]:
        for number in range(self.size):
            yield {"x": torch.full((3,), number)}


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_tensors_travel_by_value_and_hold_no_file() -> None:
    """Thousands of rows may be on their way, and a process may open a thousand files."""
    ahead = ReadAhead({0: Stream("web", Tensors(0, 4000), seed=0)}, processes=1, context=FORK)
    files = open_files()
    rows = [row for _ in range(200) for row in ahead.read(0).rows]
    assert open_files() <= files + 2
    assert unpacked(rows[3000])["x"].tolist() == [3000] * 3


def test_processes_end_with_their_reader() -> None:
    before = set(multiprocessing.active_children())
    ahead = ReadAhead(sources(), processes=8, context=FORK)
    ahead.read(0)
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 3  # no more than streams
    del ahead
    assert not any(process.is_alive() for process in started)


class _Long:
    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        self.place += 1
        return [self.place] * 5000

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "buffer": "x" * 1_000_000}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Long(streams.Plain):
    """Rows and a state that are larger than a pipe."""

    def __iter__(self) -> Any:
        return _Long()


def test_a_large_state_and_large_rows_pass_each_other() -> None:
    ahead = ReadAhead({0: Stream("web", Long(0, 1), seed=0)}, processes=1, context=FORK)
    place = [ahead.read(0) for _ in range(8)][4].place
    assert len(place.state) > 1_000_000
    ahead.seek(0, place)
    assert unpacked(ahead.read(0).rows[0])[0] == 65
