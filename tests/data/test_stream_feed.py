"""The rows of a stream by their number: any of them is found again, in this process or another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import datasets
import pytest

from adaptmix.data._stream import CHUNK, Place, Stream
from adaptmix.data._stream_feed import Feed
from adaptmix.data._stream_readers import ReadHere
from tests import streams

JUMPS = (streams.Stateful, streams.StatefulRows, streams.hugging_face)


def feed_of(source: Any) -> Feed:
    feed = Feed("web", 0)
    feed.read_from(ReadHere({0: Stream("web", source, seed=0)}), 0)
    return feed


def place_of(state: dict[str, Any]) -> Place:
    return Place(**{key: state[key] for key in ("epoch", "offset", "state", "seen")})


@pytest.mark.parametrize("source", streams.SOURCES)
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


def test_streams_that_come_from_one_dataset_do_not_move_each_other() -> None:
    source = streams.hugging_face(0, 200, shards=4)
    even, odd = (source.filter(lambda row, rest=rest: row["x"] % 2 == rest) for rest in (0, 1))
    feeds = [feed_of(part) for part in (even, odd)]
    for each in feeds:
        each.give(30)
    place = place_of(feeds[0].state(30))
    stream = Stream("web", even, seed=0)
    assert stream._jump(place)
    assert [row["x"] for row in stream.read().rows] == list(range(32, 64, 2))


def test_the_dataset_that_was_given_stays_as_it_is() -> None:
    source = streams.hugging_face(0, 40)
    feed = feed_of(source)
    feed.give(20)
    assert [row["x"] for row in source] == list(range(40))
    assert isinstance(source, datasets.IterableDataset)
