"""One stream: read in chunks, and read again from any of them (``data/_source_state.py``)."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from adaptmix import Mixture
from adaptmix.data._stream import CHUNK, Chunk, Place, Stream
from adaptmix.errors import StateError
from tests import streams


def numbers(chunk: Chunk) -> list[int]:
    return [streams.number_of(row) for row in chunk.rows]


@pytest.mark.parametrize("source", streams.SOURCES)
@pytest.mark.parametrize("size", [5, 2 * CHUNK, 50])
def test_an_epoch_has_every_row_once_and_then_the_next_one_begins(
    source: Callable[[int, int], Any], size: int
) -> None:
    stream = Stream("web", source(100, size), seed=0)
    for epoch in range(3):
        rows: list[int] = []
        while True:
            chunk = stream.read()
            assert (chunk.place.epoch, chunk.place.offset) == (epoch, len(rows))
            rows += numbers(chunk)
            if chunk.ended:
                break
        assert sorted(rows) == list(range(100, 100 + size))


def test_what_cannot_jump_is_read_up_to_its_place_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place(0, 2 * CHUNK)
    with caplog.at_level(logging.WARNING, "adaptmix"):
        Stream("web", streams.Plain(0, 50), seed=0).seek(place)
    assert "Reading 32 rows of stream 'web'" in caplog.text
    assert "does not say how to go on there" in caplog.text


def test_reading_leaves_the_random_states_of_the_process_alone() -> None:
    states = random.getstate(), torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    rows = numbers(Stream("web", streams.Shuffled(0, 12), seed=0).read())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert str(np.random.get_state()) == states[2]  # noqa: NPY002
    assert rows == numbers(Stream("web", streams.Shuffled(0, 12), seed=0).read())
    assert rows != numbers(Stream("web", streams.Shuffled(0, 12), seed=1).read())


def test_a_stream_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="stream 'web' has no rows"):
        Stream("web", streams.Plain(0, 0), seed=0).read()


def test_a_stream_that_can_be_read_only_once_is_refused() -> None:
    class Once(streams.Plain):
        def __init__(self) -> None:
            super().__init__(0, 20)
            self.rows = iter(range(20))

        def __iter__(self) -> Any:
            return self.rows

    stream = Stream("web", Once(), seed=0)
    stream.read(), stream.read()
    with pytest.raises(ValueError, match="must begin anew with each iter"):
        stream.read()


def test_a_source_that_became_shorter_is_refused() -> None:
    with pytest.raises(StateError, match="it ended before row 32 of epoch 0"):
        Stream("web", streams.Plain(0, 20), seed=0).seek(Place(0, 32))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (iter(range(3)), "'web' is range_iterator"),
        (DataLoader(streams.Plain(0, 3)), "'web' is DataLoader"),
        (7, "'web' is int"),
    ],
)
def test_what_is_no_stream_is_refused(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Mixture({"web": given})


class Flaky(streams.Plain):
    """Raises once, as where a network is gone for a moment."""

    failed = False

    def __iter__(self) -> Any:
        for row in super().__iter__():
            if row == 2 * CHUNK + 3 and not self.failed:
                self.failed = True
                raise ConnectionError("gone")
            yield row


def test_after_an_error_the_same_rows_come_and_not_the_end() -> None:
    stream = Stream("web", Flaky(0, 60), seed=0)
    rows = numbers(stream.read()) + numbers(stream.read())
    with pytest.raises(ConnectionError):
        stream.read()
    rows += numbers(stream.read()) + numbers(stream.read())
    assert rows == list(range(60))


def test_a_dataset_that_was_read_begins_at_its_start_for_the_next_stream() -> None:
    source = streams.Stateful(0, 50)
    Stream("web", source, seed=0).read()
    assert numbers(Stream("web", source, seed=0).read()) == list(range(CHUNK))


@pytest.mark.parametrize("source", [streams.Plain, streams.Stateful])
def test_held_out_rows_do_not_come_in_later_epochs(source: Callable[[int, int], Any]) -> None:
    stream = Stream("web", source(0, 50), seed=0, held=10)
    rows = [row for _ in range(8) for row in numbers(stream.read())]
    assert rows == [*range(10, 50), *range(10, 50)]
