"""Mixtures: rows and domains find each other, and bad input is named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, IterableDataset, TensorDataset

from adaptmix import Mixture
from adaptmix._types import Domains
from tests.helpers_data import mixture

LABELS = st.lists(st.sampled_from(["news", "code", "math"]), min_size=1, max_size=40)


class Table:
    """Rows and columns, as a Hugging Face dataset has them."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self._columns[key]
        return {name: column[key] for name, column in self._columns.items()}


class Stream(IterableDataset[int]):
    """An iterable dataset that knows its length, which does not make it map-style."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


def test_the_contract() -> None:
    mix = Mixture({"a": ["x", "y"], "b": ["z"]}, importance={"b": 3.0, "a": 1.0})
    assert mix.domains == ("a", "b")
    assert mix.sizes.tolist() == [2, 1]
    assert mix.importance.tolist() == [0.25, 0.75]
    assert [mix[row] for row in range(len(mix))] == ["x", "y", "z"]
    assert mix.domain_of([2, 0]).tolist() == [1, 0]
    assert isinstance(mix.info, Domains)
    assert mix.info.names == mix.domains
    assert mix.info.sizes.tolist() == [2.0, 1.0]
    assert mix.info.importance.tolist() == [0.25, 0.75]


def test_importance_follows_sizes_by_default() -> None:
    assert mixture(30, 10).importance.tolist() == [0.75, 0.25]


def test_vectors_are_copies() -> None:
    mix = mixture(2, 2)
    mix.sizes[:] = 0
    mix.importance[:] = 0.0
    assert mix.sizes.tolist() == [2, 2]
    assert mix.importance.tolist() == [0.5, 0.5]


def test_parts_may_be_concatenated_datasets() -> None:
    parts = [TensorDataset(torch.tensor([i, i + 10])) for i in range(3)]
    mix = Mixture({"two": ConcatDataset(parts[:2]), "one": parts[2]})
    assert mix.sizes.tolist() == [4, 2]
    assert [int(mix[row][0]) for row in range(6)] == [0, 10, 1, 11, 2, 12]
    assert mix.domain_of(np.arange(6)).tolist() == [0, 0, 0, 0, 1, 1]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_domains_and_rows_are_inverse(sizes: list[int]) -> None:
    check_inverse(mixture(*sizes))


@given(labels=LABELS)
def test_domains_and_rows_are_inverse_with_labels(labels: list[str]) -> None:
    mix = Mixture.from_labels(range(len(labels)), labels)
    assert mix.domains == tuple(sorted(set(labels)))
    assert [mix.domains[d] for d in mix.domain_of(np.arange(len(labels)))] == labels
    assert [mix[row] for row in range(len(mix))] == list(range(len(labels)))
    check_inverse(mix)


def check_inverse(mix: Mixture) -> None:
    """Every row is at exactly one position of exactly one domain."""
    rows = [mix.rows_of(d, np.arange(size)) for d, size in enumerate(mix.sizes)]
    for domain, own in enumerate(rows):
        assert own.dtype == np.int64
        assert mix.domain_of(own).tolist() == [domain] * len(own)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(mix)))


@pytest.mark.parametrize(
    "labels",
    [
        [10, 2, 10],
        np.array([10, 2, 10]),
        torch.tensor([10, 2, 10]),
        (label for label in (10, 2, 10)),
    ],
    ids=["list", "array", "tensor", "generator"],
)
def test_integer_labels_are_sorted_as_numbers(labels: Any) -> None:
    mix = Mixture.from_labels("xyz", labels, importance={"2": 1.0, "10": 3.0})
    assert mix.domains == ("2", "10")
    assert mix.importance.tolist() == [0.25, 0.75]
    assert mix.domain_of([0, 1, 2]).tolist() == [1, 0, 1]


def test_labels_may_name_a_column() -> None:
    table = Table(text=["x", "y", "z"], source=["web", "code", "web"])
    mix = Mixture.from_labels(table, "source")
    assert mix.domains == ("code", "web")
    assert mix.sizes.tolist() == [1, 2]
    assert mix[mix.rows_of(0, [0])[0]] == {"text": "y", "source": "code"}


def test_labels_may_cover_a_concatenated_dataset() -> None:
    parts = [TensorDataset(torch.arange(3)), TensorDataset(torch.arange(3, 5))]
    mix = Mixture.from_labels(ConcatDataset(parts), ["b", "a", "b", "a", "a"])
    assert [int(mix[row][0]) for row in mix.rows_of(0, np.arange(3))] == [1, 3, 4]


def test_the_order_of_rows_does_not_order_domains() -> None:
    left = Mixture.from_labels(range(3), ["b", "a", "b"])
    right = Mixture.from_labels(range(3), ["a", "b", "b"])
    assert left.domains == right.domains


def test_domain_of_no_rows() -> None:
    assert mixture(2).domain_of([]).tolist() == []


@pytest.mark.parametrize("rows", [[3], [-1], [0, 7]])
def test_rows_outside_are_refused(rows: list[int]) -> None:
    for mix in (mixture(1, 2), Mixture.from_labels(range(3), [0, 1, 1])):
        with pytest.raises(IndexError, match=r"^rows must be in \[0, 3\); got "):
            mix.domain_of(rows)


@pytest.mark.parametrize(
    ("datasets", "importance", "error", "message"),
    [
        ({}, None, ValueError, "datasets must hold at least one domain; got none."),
        ({"a": [1], "b": []}, None, ValueError, "datasets must not be empty; 'b' has no rows."),
        ([[1], [2]], None, TypeError, "datasets must map a domain's name to its dataset; got list"),
        (
            {"a": iter([1])},
            None,
            TypeError,
            "datasets must be map-style, with a length, or",
        ),
        ({"a": {1, 2}}, None, TypeError, "datasets must be map-style, with a length, or"),
        ({1: [1]}, None, TypeError, "names must be a sequence of strings; got (1,)."),
        ({"a": [1], "b": [1]}, {"a": 1, "b": -2}, ValueError, "importance must be >= 0; got -2 at"),
        ({"a": [1], "b": [1]}, {"a": 0, "b": 0}, ValueError, "importance must be > 0 for at least"),
        ({"a": [1]}, {"a": np.nan}, ValueError, "importance must be finite; got nan at 0."),
        (
            {"a": [1], "b": [1]},
            {"a": 1, "b": 1, "c": 1},
            ValueError,
            "importance must name only known domains; got 'c'. The domains are a, b.",
        ),
        (
            {"a": [1], "b": [1]},
            {"a": 1},
            ValueError,
            "importance must name every domain; got 'b'. The domains are a, b.",
        ),
        ({"a": [1]}, [1.0], TypeError, "importance must map names to numbers; got list."),
    ],
)
def test_bad_input_is_named(
    datasets: Any, importance: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        Mixture(datasets, importance=importance)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["a"], ValueError, "labels must have one entry per row of the dataset (2); got 1."),
        (["a"] * 3, ValueError, "labels must have one entry per row of the dataset (2); got 3."),
        ([0.5, 1.5], TypeError, "labels must be one name or integer per row; got an array of"),
        ([True, False], TypeError, "labels must be one name or integer per row; got an array of"),
        ([["a"], ["b"]], TypeError, "labels must be one name or integer per row; got an array of"),
        ([None, "a"], TypeError, "labels must be one name or integer per row; got"),
    ],
)
def test_bad_labels_are_named(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        Mixture.from_labels(["x", "y"], labels)


def test_labels_need_a_map_style_dataset() -> None:
    with pytest.raises(
        TypeError, match=r"^dataset must be map-style, with a length; got list_iterator\.$"
    ):
        Mixture.from_labels(iter(["x"]), ["a"])


def test_streams_are_domains_of_equal_importance_whose_length_is_not_known() -> None:
    mixture = Mixture({"a": Stream(), "b": [1, 2]})
    assert (list(mixture.streams), mixture.sizes.tolist()) == ([0], [2**62, 2])
    assert (mixture.info.sizes.tolist(), mixture.importance.tolist()) == ([np.inf, 2], [0.5, 0.5])
    assert repr(mixture) == "Mixture({'a': a stream, importance 0.5, 'b': 2 rows, importance 0.5})"
    assert (mixture[1], mixture.domain_of([0, 1]).tolist()) == (2, [1, 1])
    with pytest.raises(TypeError, match="length of stream 'a' is not known"):
        len(mixture)


def test_sizes_of_streams_are_taken_as_they_are_given() -> None:
    mixture = Mixture({"a": Stream(), "b": [1, 2]}, sizes={"a": 6})
    assert (len(mixture), mixture.importance.tolist()) == (8, [0.75, 0.25])
    for sizes, error, message in (
        ({"b": 2}, ValueError, "sizes must be those of streams; got 'b'. The streams are a."),
        ({"a": 0}, ValueError, "sizes['a'] must be an integer >= 1"),
        ({"a": "many"}, TypeError, "sizes['a'] must be"),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            Mixture({"a": Stream(), "b": [1, 2]}, sizes=sizes)  # type: ignore[arg-type]
