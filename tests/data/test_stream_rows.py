"""Rows of streams in a run: each once, in an order that only the sources decide, after any stop."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from adaptmix import Controller, Mixture
from adaptmix.data import Layout, Plan, PlanSampler
from adaptmix.data._collation import DrawnRows, NumberedRows
from adaptmix.errors import StateError
from tests import streams

Source = Callable[[int, int], Any]
PAIRS: list[tuple[Source, Source]] = [
    (streams.Plain, streams.hugging_face),
    (streams.Shuffled, streams.Stateful),
    (streams.shuffled, streams.StatefulRows),
]
WAYS = ("repeat", "stop_first", "stop_all", "drop")


def mixture(pair: tuple[Source, Source], **options: Any) -> Mixture:
    """Two streams of 90 and 37 rows beside 50 rows that have an index."""
    parts = {"a": pair[0](0, 90), "b": pair[1](1000, 37), "c": list(range(2000, 2050))}
    return Mixture(parts, **options)


def in_domain(rows: list[int], domain: int) -> list[int]:
    return [row for row in rows if row // 1000 == domain]


def options_of(way: str) -> dict[str, Any]:
    options: dict[str, Any] = {"when_exhausted": way, "accumulation": 2, "batch_size": 4}
    return options if way == "repeat" else options | {"max_epochs": {"c": 2}}


def stopped(
    pair: tuple[Source, Source], steps: int, stops: list[int], workers: list[int], **options: Any
) -> list[list[int]]:
    """The rows of a run that is left after some steps and gone on with in another process."""
    rows, state = [], None
    for stop, num_workers in zip([*stops, None], workers, strict=True):
        part, state = streams.train(
            mixture(pair), steps, stop=stop, state=state, num_workers=num_workers, **options
        )
        rows += part
    return rows


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_with_the_same_rows_after_any_stop(
    pair: tuple[Source, Source], way: str
) -> None:
    whole, _ = streams.train(mixture(pair), 60, **options_of(way))
    taken = len(whole) // 2
    places = random.Random(0)
    for _ in range(3):
        stops = sorted(places.sample(range(1, taken), 3))
        assert stopped(pair, 60, stops, [0, 0, 0, 0], **options_of(way)) == whole


@pytest.mark.parametrize(("pair", "way"), [(PAIRS[0], "drop"), (PAIRS[2], "repeat")])
def test_rows_do_not_depend_on_workers(pair: tuple[Source, Source], way: str) -> None:
    whole, _ = streams.train(mixture(pair), 24, **options_of(way))
    assert stopped(pair, 24, [5, 16], [2, 1, 0], **options_of(way)) == whole


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("epochs", [1, 2])
def test_no_row_is_lost_or_repeated_within_an_epoch(
    pair: tuple[Source, Source], epochs: int
) -> None:
    """With "drop", all rows are drawn but for less than a batch at the end."""
    rows, _ = streams.train(mixture(pair), 200, when_exhausted="drop", max_epochs=epochs)
    drawn = Counter(streams.flat(rows))
    assert max(drawn.values()) == epochs
    assert epochs * 177 - sum(drawn.values()) < 8
    for domain, size in ((0, 90), (1, 37)):  # a step may have the end of one and the next's start
        early = in_domain(streams.flat(rows), domain)[: size - 8]
        assert len(set(early)) == size - 8


@pytest.mark.parametrize("pair", PAIRS)
def test_stop_first_and_stop_all_end_where_streams_do(pair: tuple[Source, Source]) -> None:
    rows, _ = streams.train(mixture(pair), 200, when_exhausted="stop_first")
    drawn = Counter(streams.flat(rows))
    assert max(drawn.values()) == 1
    assert len(in_domain(list(drawn), 1)) > 37 - 4  # a step has two or three of them
    rows, _ = streams.train(mixture(pair), 200, when_exhausted="stop_all")
    assert len(set(streams.flat(rows))) == 177
    assert len(set(streams.flat(rows[:-1]))) < 177


def test_given_sizes_bound_shares_and_streams_end_where_reading_does() -> None:
    """The stream has 37 rows and was said to have 50: no row of it is drawn a third time."""
    parts = mixture(PAIRS[0], sizes={"b": 50})
    rows, _ = streams.train(parts, 60, max_epochs={"b": 2})
    drawn = Counter(in_domain(streams.flat(rows), 1))
    assert max(drawn.values()) == 2
    assert 60 <= sum(drawn.values()) <= 74


def rows_of(mix: Mixture, drawn: list[int]) -> list[int]:
    """The numbers of the rows that a loader would fetch."""
    assert isinstance(drawn, DrawnRows)
    items, _ = NumberedRows(mix).__getitems__(drawn)
    return [streams.number_of(item) for item in items]


def ranks(
    parts: Callable[[], Mixture], world: int, steps: int, **options: Any
) -> list[list[list[int]]]:
    """The rows of each process, micro-batch by micro-batch."""
    taken = []
    for rank in range(world):
        mix = parts()
        plan = Plan(mix, shares=mix.importance, lag=0, seed=0, **options)
        layout = Layout(16 // world, rank=rank, world_size=world)
        mine = []
        for drawn in PlanSampler(plan, layout, steps=steps):
            mine.append(rows_of(mix, drawn))
            plan.advance()
        taken.append(mine)
    return taken


@pytest.mark.parametrize("way", WAYS)
def test_processes_together_have_the_rows_of_one(way: str) -> None:
    """Also where a stream ends, which all of them find at the same step."""

    def parts() -> Mixture:
        return mixture((streams.Plain, streams.Shuffled))

    [alone] = ranks(parts, 1, 40, when_exhausted=way)
    for world in (2, 4):
        each = ranks(parts, world, 40, when_exhausted=way)
        joined = [streams.flat(rows) for rows in zip(*each, strict=True)]
        assert joined == alone


def test_streams_that_can_be_split_are_read_in_parts() -> None:
    def parts() -> Mixture:
        return Mixture({"a": streams.hugging_face(0, 96, shards=4), "c": list(range(2000, 2050))})

    each = [in_domain(streams.flat(rows), 0) for rows in ranks(parts, 2, 12)]
    drawn = Counter(streams.flat(rows[:40] for rows in each))  # of 48 in an epoch
    assert len(drawn) == 80
    drawn = Counter(streams.flat(rows[:48] for rows in each))
    assert set(drawn) <= set(range(96))
    # Where ends matter, all processes read all of it, and less than a batch is left over.
    whole = [streams.flat(rows) for rows in ranks(parts, 2, 24, when_exhausted="drop")]
    drawn = Counter(in_domain(streams.flat(whole), 0))
    assert len(drawn) > 96 - 16
    assert max(drawn.values()) == 1


def test_a_part_is_not_gone_on_with_by_other_processes() -> None:
    mix = Mixture({"a": streams.hugging_face(0, 96, shards=4)})
    plan = Plan(mix, shares=mix.importance, lag=0, seed=0)
    plan.streams.gather = lambda mine: [mine, mine]
    for _ in islice(PlanSampler(plan, Layout(8, rank=0, world_size=2), steps=9), 3):
        plan.advance()
    state = plan.state_dict()
    other = Plan(mix, shares=mix.importance, lag=0, seed=0)
    other.load_state_dict(state)
    with pytest.raises(StateError, match=r"'a' was read in 2 parts.*got 1\. Go on with as many"):
        next(iter(PlanSampler(other, Layout(16), steps=9)))


def test_a_part_made_by_hand_is_refused_where_ends_matter() -> None:
    from datasets.distributed import split_dataset_by_node

    mix = Mixture({"a": split_dataset_by_node(streams.hugging_face(0, 96), 0, 2)})
    plan = Plan(mix, shares=mix.importance, lag=0, seed=0, when_exhausted="drop")
    with pytest.raises(ValueError, match="before split_dataset_by_node"):
        next(iter(PlanSampler(plan, Layout(8, rank=0, world_size=2), steps=9)))


def test_a_part_of_another_process_is_refused() -> None:
    from datasets.distributed import split_dataset_by_node

    mix = Mixture({"a": split_dataset_by_node(streams.hugging_face(0, 96), 0, 2)})
    plan = Plan(mix, shares=mix.importance, lag=0, seed=0)
    with pytest.raises(ValueError, match="this is process 1 of 2, and the stream is part 0 of 2"):
        next(iter(PlanSampler(plan, Layout(8, rank=1, world_size=2), steps=9)))


def test_a_damaged_state_is_refused() -> None:
    mix = mixture(PAIRS[0])
    plan = Plan(mix, shares=mix.importance, lag=0, seed=0)
    plan.load_state_dict(plan.state_dict() | {"streams": '{"a": 3}'})
    with pytest.raises(StateError, match="streams must be the state of these streams"):
        next(iter(PlanSampler(plan, Layout(8), steps=9)))


def test_rows_that_come_again_are_not_fresh() -> None:
    mix = mixture(PAIRS[0])
    plan = Plan(mix, shares=mix.importance, lag=0, seed=0)
    sampler = PlanSampler(plan, Layout(12), steps=30)
    seen: set[int] = set()
    for drawn in sampler:
        rows = rows_of(mix, drawn)
        fresh = sampler.take(drawn.ordinal).fresh.tolist()  # type: ignore[attr-defined]
        assert fresh == [row not in seen for row in rows]
        seen.update(rows)
        plan.advance()
    assert np.array_equal(sorted(seen), [*range(90), *range(1000, 1037), *range(2000, 2050)])


class Columns(streams.Plain):
    def __iter__(self) -> Iterator[Any]:
        for row in super().__iter__():
            yield {"x": torch.tensor(float(row))}


def pop(rows: list[Any]) -> torch.Tensor:
    """A batch that leaves nothing in its rows."""
    return torch.stack([row.pop("x") for row in rows]).add_(1000.0)


def test_held_out_rows_are_whole_each_time_and_are_never_trained_on() -> None:
    """Also where a row is a tensor, and a batch is made by changing its rows."""
    controller = Controller(Mixture({"a": Columns(0, 60)}), policy="static", holdout=5)
    weight = torch.ones((), requires_grad=True)
    trained: set[float] = set()
    for batch, draw in controller.loader(10, steps=30, collate_fn=pop).with_draws():
        held = np.zeros(10, bool) if draw.held is None else np.asarray(draw.held)
        assert set(batch[held].tolist()) <= {1000.0 + row for row in range(5)}
        trained.update(batch[~held].tolist())
        controller.loss(weight * batch, draw=draw).backward()
        controller.step()
    assert trained == {1000.0 + row for row in range(5, 60)}
