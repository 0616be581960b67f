"""One stream: read in chunks, and read again from any of them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from adaptmix import Mixture
from adaptmix.data._stream import CHUNK, Chunk, Place, Stream
from adaptmix.data._stream_readers import ReadHere
from adaptmix.data._stream_rows import Feed
from adaptmix.errors import StateError
from tests import streams

SOURCES: list[Callable[[int, int], Any]] = [
    streams.Plain,
    streams.Shuffled,
    streams.Stateful,
    streams.StatefulRows,
    streams.Forgetful,
    streams.hugging_face,
    streams.shuffled,
]
JUMPS = (streams.Stateful, streams.StatefulRows, streams.hugging_face)


def numbers(chunk: Chunk) -> list[int]:
    return [streams.number_of(row) for row in chunk.rows]


@pytest.mark.parametrize("source", SOURCES)
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


def feed_of(source: Any) -> Feed:
    feed = Feed("web", 0)
    feed.read_from(ReadHere({0: Stream("web", source, seed=0)}), 0)
    return feed


def place_of(state: dict[str, Any]) -> Place:
    return Place(**{key: state[key] for key in ("epoch", "offset", "state", "seen")})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("number", [0, 7, CHUNK, 37, 50, 61, 123])
def test_any_row_is_found_again_in_another_process(
    source: Callable[[int, int], Any], number: int
) -> None:
    """The state says where its chunk begins, and how many rows come before it there."""
    feed = feed_of(source(100, 50))
    feed.give(number)
    state = feed.state(number)
    expected = feed.give(70)
    place = place_of(state)
    again = Feed("web", 0, number=number, place=place, skip=state["skip"])
    fresh = source(100, 50)
    again.read_from(ReadHere({0: Stream("web", fresh, seed=0)}), number)
    assert again.give(70) == expected
    # A source that can jump is read from there; what was looked at is read once more.
    if source in JUMPS[:2]:
        assert fresh.read <= 70 + 3 * CHUNK


def test_a_reader_goes_back_to_rows_that_were_given_and_not_trained() -> None:
    feed = feed_of(streams.Plain(0, 50))
    feed.give(10)
    expected = feed.give(60)
    feed.go_to(10)
    assert feed.give(60) == expected


def test_set_epoch_is_called_at_the_beginning_of_each_epoch() -> None:
    source = streams.Plain(0, 20)
    feed_of(source).give(60)
    assert source.epochs[-3:] == [0, 1, 2]
    source = streams.hugging_face(0, 40).shuffle(seed=1, buffer_size=40)
    rows = [streams.number_of(row) for row, _ in feed_of(source).give(80)]
    assert sorted(rows[:40]) == sorted(rows[40:]) == list(range(40))
    assert rows[:40] != rows[40:]


def test_what_cannot_jump_is_read_up_to_its_place_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place(0, 2 * CHUNK)
    with caplog.at_level(logging.WARNING, "adaptmix"):
        Stream("web", streams.Plain(0, 50), seed=0).seek(place)
    assert "Reading 32 rows of stream 'web'" in caplog.text
    assert "does not say how to go on there" in caplog.text


@pytest.mark.parametrize("source", [streams.Forgetful, streams.shuffled])
def test_a_state_that_leads_elsewhere_is_not_believed(
    source: Callable[[int, int], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Hugging Face's shuffle buffer is filled anew with other rows, and some would be lost."""
    feed = feed_of(source(0, 200))
    feed.give(100)
    state = feed.state(100)
    with caplog.at_level(logging.WARNING, "adaptmix"):
        place = place_of(state)
        again = Feed("web", 0, number=100, place=place, skip=state["skip"])
        again.read_from(ReadHere({0: Stream("web", source(0, 200), seed=0)}), 100)
    assert "does not lead back to the same rows" in caplog.text
    assert again.give(50) == feed.give(50)


def test_reading_leaves_the_random_states_of_the_process_alone() -> None:
    states = random.getstate(), torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    rows = numbers(Stream("web", streams.Shuffled(0, 12), seed=0).read())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert str(np.random.get_state()) == states[2]  # noqa: NPY002
    assert rows == numbers(Stream("web", streams.Shuffled(0, 12), seed=0).read())
    assert rows != numbers(Stream("web", streams.Shuffled(0, 12), seed=1).read())


def test_streams_that_come_from_one_dataset_do_not_move_each_other() -> None:
    source = streams.hugging_face(0, 200, shards=4)
    even, odd = (source.filter(lambda row, rest=rest: row["x"] % 2 == rest) for rest in (0, 1))
    feeds = [feed_of(part) for part in (even, odd)]
    for each in feeds:
        each.give(30)
    place = place_of(feeds[0].state(30))
    stream = Stream("web", even, seed=0)
    assert stream._jump(place)
    assert numbers(stream.read()) == list(range(32, 64, 2))


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


def test_the_dataset_that_was_given_stays_as_it_is() -> None:
    source = streams.hugging_face(0, 40)
    feed = feed_of(source)
    feed.give(20)
    assert [row["x"] for row in source] == list(range(40))
    assert isinstance(source, datasets.IterableDataset)
