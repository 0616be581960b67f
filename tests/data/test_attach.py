"""Attaching to a dataset and a loader that somebody else made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset

from adaptmix import Mixture
from adaptmix.data import Layout, PlanSampler, as_mixture, loader_options, numbered_loader
from adaptmix.errors import LagError
from tests import helpers_data as helpers

SIZES = (20, 9, 14)


class Table:
    """Rows and columns, as a Hugging Face dataset has them, read several rows at a time."""

    column_names = ("text", "source")

    def __init__(self) -> None:
        self.several = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: int | str) -> Any:
        columns = {"text": ["w", "x", "y", "z"], "source": ["b", "a", "b", "b"]}
        return columns[key] if isinstance(key, str) else {n: c[key] for n, c in columns.items()}

    def __getitems__(self, rows: list[int]) -> list[Any]:
        self.several += 1
        return [self[row] for row in rows]


class Stream(IterableDataset[int]):
    """Rows that cannot be drawn by index."""

    def __iter__(self) -> Iterator[int]:
        return iter(())


def test_domains_are_given_in_three_ways() -> None:
    table = Table()
    by_column = as_mixture(table, "source", importance={"a": 1.0, "b": 1.0})
    assert by_column.domains == ("a", "b")
    assert by_column.importance.tolist() == [0.5, 0.5]
    by_labels = as_mixture(table, ["b", "a", "b", "b"])
    assert by_labels.domain_of([0, 1, 2, 3]).tolist() == [1, 0, 1, 1]
    elsewhere = as_mixture([0, 1, 2, 3], "source", labelled=table)
    assert elsewhere[2] == 2
    assert elsewhere.sizes.tolist() == [1, 3]
    pieces: Any = [[1, 2], [3]]
    parts = as_mixture(ConcatDataset(pieces), None, importance={"0": 1.0, "1": 3.0})
    assert parts.domains == ("0", "1")
    assert parts.importance.tolist() == [0.25, 0.75]
    assert as_mixture(by_column, None) is by_column


def test_rows_are_read_together_where_the_dataset_can() -> None:
    table = Table()
    mixture = as_mixture(table, "source")
    assert [row["text"] for row in mixture.__getitems__([2, 0])] == ["y", "w"]
    assert table.several == 1
    assert Mixture({"a": ["x", "y"]}).__getitems__([1]) == ["y"]


@pytest.mark.parametrize(
    ("dataset", "domains", "importance", "message"),
    [
        (Stream(), "source", None, r"must be map-style.*got the iterable Stream"),
        ([1, 2], None, None, r"got None for a list"),
        (Table(), "sourse", None, r"got 'sourse', and it has text, source\."),
        ([1, 2], "source", None, r"dataset\[name\] returns; got 'source' for a list"),
        (Mixture({"a": [1]}), None, {"a": 1.0}, r"importance must be given to the Mixture itself"),
    ],
)
def test_domains_that_cannot_be_found_are_named(
    dataset: Any, domains: Any, importance: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        as_mixture(dataset, domains, importance=importance)


def keep(rows: list[int]) -> dict[str, Any]:
    """A batch that is a mapping."""
    return {"rows": torch.tensor(rows)}


def loader_of(dataset: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, **options)


def sampler(lag: int = 4, **options: Any) -> PlanSampler:
    plan = helpers.plan(SIZES, lag=lag)
    return PlanSampler(plan, Layout(batch_size=3, accumulation=2), steps=12, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_carry_their_numbers_through_other_loaders(workers: int) -> None:
    own = sampler(epoch_steps=2)
    like = loader_of(range(43), collate_fn=keep, num_workers=workers)
    loader = numbered_loader(own, like, key="number")
    assert loader.num_workers == workers
    assert len(loader) == 4
    for epoch in range(2):
        for micro, batch in enumerate(loader):
            assert batch["number"] == 4 * epoch + micro
            draw = own.take(batch["number"])
            assert batch["rows"].tolist() == draw.rows.tolist()
            if micro % 2:
                own.plan.advance()
    with pytest.raises(ValueError, match=r"Micro-batch 7 must be trained once"):
        own.take(7)


def test_skipped_batches_are_empty_and_the_rest_is_the_same() -> None:
    whole = sampler(epoch_steps=3)
    expected = [list(rows) for rows in whole]
    resumed = sampler(epoch_steps=3)
    list(resumed)
    resumed.plan.advance()
    resumed.expect_skip(1)
    assert len(resumed) == 6
    assert list(resumed)[:2] == [[], []]
    resumed.expect_skip(1)
    assert [list(rows) for rows in resumed][2:] == expected[2:]
    assert [] not in list(resumed)  # once only


def test_loaders_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match="must be a DataLoader; got list"):
        loader_options([1])
    with pytest.raises(TypeError, match="iterable Stream"):
        loader_options(loader_of(Stream()))
    unordered = loader_of([1, 2], in_order=False)
    with pytest.raises(ValueError, match="in_order must be True"):
        loader_options(unordered)
    ahead = loader_of([1, 2], collate_fn=keep, num_workers=2)
    with pytest.raises(LagError, match="lag must be at least 2"):
        numbered_loader(sampler(lag=1), ahead, key="number")
    lists = numbered_loader(sampler(), loader_of([1, 2]), key="number")
    with pytest.raises(TypeError, match="collate_fn must return a mapping of tensors; got Tensor"):
        next(iter(lists))


def test_a_column_is_read_past_a_transform() -> None:
    """Rows of the transform have no such column, and asking for it raised a KeyError."""
    datasets = pytest.importorskip("datasets")
    plain = datasets.Dataset.from_dict({"x": [1.0, 2.0, 3.0], "site": ["b", "a", "b"]})
    told = plain.with_transform(lambda rows: {"inputs": torch.tensor(rows["x"])})
    mixture = as_mixture(told, "site")
    assert mixture.domains == ("a", "b")
    assert mixture.sizes.tolist() == [1, 2]
    assert float(mixture[0]["inputs"]) == 1.0
