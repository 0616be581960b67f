"""Descriptions tell objects apart by what they are and how they are set, and by nothing else."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from adaptmix import policies
from adaptmix.state._identity import brief, describe, differences, digest


@dataclass(frozen=True)
class Record:
    rate: float
    inner: Any = None


class Slotted:
    __slots__ = ("__hidden", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.__hidden = 2 * rate


class Plain:
    def __init__(self, rate: Any) -> None:
        self.rate = rate

    def scale(self, value: float) -> float:
        return value


def closing_over(rate: float) -> Any:
    return lambda value: rate * value


MAKERS: dict[str, Any] = {
    "dataclass": Record,
    "nested": lambda rate: Record(1.0, [Record(rate), {"x": (rate,)}]),
    "object": Plain,
    "slots": Slotted,
    "array": lambda rate: Plain(np.full(3, rate)),
    "tensor": lambda rate: Plain(torch.full((3,), rate)),
    "function": closing_over,
    "partial": lambda rate: functools.partial(math.pow, rate),
    "method": lambda rate: Plain(rate).scale,
    "chain": lambda rate: policies.chain(policies.FGLS(), policies.Smooth(rate)),
    "set": lambda rate: Plain({rate, 7.0}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_settings_tell_objects_apart(name: str) -> None:
    make = MAKERS[name]
    first, again, other = describe(make(0.25)), describe(make(0.25)), describe(make(0.5))
    assert first == again
    assert digest(first) == digest(again) != digest(other)
    assert list(differences(first, other))
    assert not list(differences(first, again))
    assert "0x" not in repr(first)


def test_an_object_that_holds_itself() -> None:
    plain = Plain(None)
    plain.rate = [plain]
    assert describe(plain)["rate"] == [f"{__name__}.Plain"]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("1", 1),
        (None, "None"),
        ([1, 2], [2, 1]),
        ([[1], 2], [[1, 2]]),
        ({"a": 1}, {"a": 1, "b": 1}),
        (np.zeros(2), np.zeros(2, np.float32)),
        (np.zeros((2, 1)), np.zeros((1, 2))),
        (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
    ],
)
def test_digests_tell_types_and_shapes_apart(left: Any, right: Any) -> None:
    assert digest(left) != digest(right)
    assert digest(left) == digest(left)


def test_differences_name_places() -> None:
    left = {"a": {"x": [1.0, math.nan]}, "sizes": np.array([1, 2]), "gone": 1}
    right = {"a": {"x": [2.0, math.nan]}, "sizes": np.array([1, 3]), "new": 1}
    found = [(path, repr(a), repr(b)) for path, a, b in differences(left, right, names="pq")]
    assert found == [
        ("a.x['p']", "1.0", "2.0"),
        ("sizes['q']", "2", "3"),
        ("gone", "1", "nothing"),
        ("new", "nothing", "1"),
    ]


def test_brief_is() -> None:
    assert brief("x" * 200) == "'" + "x" * 59 + "…"
    assert brief([1] * 5) == "5 values"
