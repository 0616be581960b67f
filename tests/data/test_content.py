"""Rows of the same content have the same hash, and each is packed without its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from adaptmix.data._content import Packed, digest, packed, unpacked


@dataclass
class Pair:
    left: Any
    right: Any


class Plain:
    def __init__(self, number: int) -> None:
        self.inside = {"x": torch.arange(number)}


SHARD = torch.arange(100_000)
ROWS: list[Callable[[int], Any]] = [
    lambda n: torch.tensor([float(n)]),
    lambda n: torch.tensor(n),
    lambda n: torch.full((2, 3), n, dtype=torch.bfloat16),
    lambda n: torch.full((2,), n * 1j),
    lambda n: torch.full((2,), float(n), requires_grad=True),
    lambda n: SHARD[n : n + 5],
    lambda n: np.array([[n, 1]], dtype=np.float16),
    lambda n: np.array([str(n), None], dtype=object),
    lambda n: {"text": f"row {n}", "ids": [n] * 9, "x": (n, torch.tensor(n))},
    lambda n: Pair(f"{n}".encode(), np.int64(n)),
    lambda n: {n, "a", "b"},
    lambda n: Plain(n),
]


@pytest.mark.parametrize("row", ROWS)
def test_the_hash_is_that_of_the_content(row: Callable[[int], Any]) -> None:
    first, again = row(1), row(1)
    assert digest(first) == digest(again) == digest(unpacked(packed(first)))
    assert digest(first) != digest(row(2))


def test_the_hash_tells_types_and_shapes_apart() -> None:
    rows: list[Any] = [1, 1.0, True, "1", b"1", None, [1], (1,), {1: 1}, torch.tensor(1)]
    rows += [
        torch.ones(2),
        torch.ones(2, 1),
        torch.ones(2).double(),
        np.ones(2),
        [[1], 2],
        [[1, 2]],
    ]
    assert len({digest(row) for row in rows}) == len(rows)


def test_strided_tensors_are_known_by_their_values() -> None:
    table = torch.arange(6).view(2, 3)
    assert digest(table.T) == digest(table.T.contiguous())


def test_parts_that_are_one_object_do_not_count() -> None:
    text = "".join(["a", "b"])
    assert digest([text, [text]]) == digest([text, ["".join(["a", "b"])]])


@pytest.mark.parametrize("grad", [False, True])
def test_a_row_is_packed_without_the_shard_it_is_a_part_of(grad: bool) -> None:
    shard = torch.zeros(100_000, requires_grad=grad)
    row = packed({"x": shard[5:9]})
    assert isinstance(row, Packed)
    assert len(row) < 2000
    assert torch.equal(unpacked(row)["x"], shard[5:9])
