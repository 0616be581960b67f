"""Collators are proved to keep the rows they are given."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from adaptmix.data._order_proof import Proof, prove_order, rows_at

Row = dict[str, Any]


def rows(n: int = 8, *, seed: int = 0) -> list[Row]:
    """Rows of different length and content."""
    rng = random.Random(seed)
    lengths = [3 + (5 * i) % 8 for i in range(n)]
    return [
        {"ids": [rng.randrange(5, 90) for _ in range(size)], "y": i % 3}
        for i, size in enumerate(lengths)
    ]


def padded(batch: list[Row]) -> dict[str, Tensor]:
    longest = max(len(row["ids"]) for row in batch)
    ids = [row["ids"] + [0] * (longest - len(row["ids"])) for row in batch]
    return {"ids": torch.tensor(ids), "y": torch.tensor([row["y"] for row in batch])}


def by_length(batch: list[Row]) -> dict[str, Tensor]:
    return padded(sorted(batch, key=lambda row: -len(row["ids"])))


def masked(batch: list[Row]) -> dict[str, Tensor]:
    """Masks at random, as masked language models are trained."""
    made = padded(batch)
    hit = torch.rand(made["ids"].shape) < 0.15
    return {"ids": made["ids"].masked_fill(hit, 4), "labels": made["ids"].masked_fill(~hit, -100)}


def augmented(batch: list[Row]) -> Tensor:
    """Adds noise to every row."""
    x = torch.tensor([[float(v) for v in row["ids"][:3]] for row in batch])
    return x + torch.from_numpy(np.random.normal(size=x.shape))  # noqa: NPY002


def shuffled(batch: list[Row]) -> dict[str, Tensor]:
    order = torch.randperm(len(batch)).tolist()
    return padded([batch[i] for i in order])


@dataclass
class Holder:
    x: Tensor
    names: list[str]


KEEPS: dict[str, Any] = {
    "padding": padded,
    "a tuple": lambda batch: tuple(padded(batch).values()),
    "time first": lambda batch: padded(batch)["ids"].T,
    "a list of tensors": lambda batch: [torch.tensor(row["ids"]) for row in batch],
    "NumPy": lambda batch: {"x": padded(batch)["ids"].numpy()},
    "a dataclass": lambda b: Holder(padded(b)["ids"], [str(row["ids"]) for row in b]),
    "nested": lambda batch: {"inputs": {"text": (padded(batch)["ids"],)}},
    "weights of classes beside": lambda b: (padded(b)["ids"], torch.ones(len(b)) / 3),
    "numbers of classes beside": lambda b: (padded(b)["ids"], torch.bincount(padded(b)["y"])),
    "positions beside": lambda batch: {**padded(batch), "at": torch.arange(len(batch))},
    "masking": masked,
    "augmentation": augmented,
}
MOVES: dict[str, Any] = {
    "by length": by_length,
    "by length, and masked": lambda batch: masked(sorted(batch, key=lambda row: len(row["ids"]))),
    "backwards": lambda batch: padded(batch[::-1]),
    "shifted": lambda batch: padded([*batch[1:], batch[0]]),
    "by content": lambda batch: padded(sorted(batch, key=lambda row: row["ids"])),
    "shuffled": shuffled,
    "time first, sorted": lambda batch: by_length(batch)["ids"].T,
    "two exchanged": lambda batch: padded([batch[1], batch[0], *batch[2:]]),
}


@pytest.mark.parametrize("n", [2, 3, 8, 11])
@pytest.mark.parametrize("name", KEEPS)
def test_collators_that_keep_rows_are_not_refused(name: str, n: int) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        proof = prove_order(KEEPS[name], rows(n, seed=seed))
        assert proof.fault is None, proof
        if name not in ("masking", "augmentation"):
            assert proof.kept, proof


@pytest.mark.parametrize("n", [3, 8, 11])
@pytest.mark.parametrize("name", MOVES)
def test_collators_that_move_rows_are_found(name: str, n: int) -> None:
    torch.manual_seed(0)
    if name == "shuffled" and n == 3:
        torch.manual_seed(1)  # for a permutation that is not the identity
    proof = prove_order(MOVES[name], rows(n))
    assert proof.fault is not None
    assert proof.fault.startswith("collate_fn must keep rows in the order it is given them; got")


@pytest.mark.parametrize("name", ["by length", "backwards", "shifted", "by content"])
def test_two_rows(name: str) -> None:
    pair = [{"ids": [7, 8, 9, 5], "y": 0}, {"ids": [3, 8, 9, 5, 6], "y": 1}]
    assert prove_order(MOVES[name], pair).fault is not None


def test_one_row_or_equal_rows_show_nothing() -> None:
    assert prove_order(by_length, rows(1)) == Proof()
    assert prove_order(padded, rows(1) * 4) == Proof()


def test_masked_rows_are_known_by_what_is_left_of_them() -> None:
    proof = prove_order(masked, rows(8))
    assert proof.kept[0] == ("ids", 0)


def test_what_cannot_be_told_is_unclear() -> None:
    def noise(batch: list[Row]) -> Tensor:
        return (
            torch.randn(len(batch), 4) + torch.tensor([float(row["y"]) for row in batch])[:, None]
        )

    assert prove_order(noise, rows(8)) == Proof(unclear=True)

    def of_four(batch: list[Row]) -> Tensor:
        if len(batch) != 12:
            raise ValueError("twelve rows, please")
        return padded(batch)["ids"]

    assert prove_order(of_four, rows(12)) == Proof(unclear=True)


def test_copies_of_rows_are_not_taken_for_tokens() -> None:
    """All chosen answers and then all rejected ones, padded to as many tokens as there are rows."""
    lengths = [(8, 3), (5, 8), (8, 8), (2, 5), (8, 1), (3, 3), (6, 2), (4, 7)]

    def masks(rows: list[tuple[int, int]]) -> dict[str, Tensor]:
        padded = [row[part] for part in (0, 1) for row in rows]
        return {"attention_mask": torch.arange(8) < torch.tensor(padded)[:, None]}

    assert prove_order(masks, lengths).fault is None
    assert prove_order(masks, [(8, length) for length in range(1, 9)]).fault is None


def test_rows_and_random_numbers_stay_as_they_were() -> None:
    class Masks:
        def __init__(self) -> None:
            self.own = torch.Generator().manual_seed(3)
            self.numpy = np.random.default_rng(4)
            self.python = random.Random(5)

        def __call__(self, batch: list[Row]) -> Any:
            drawn = torch.rand(2, generator=self.own).sum() + self.numpy.random()
            drawn = drawn + self.python.random() + random.random() + torch.rand(())
            made = padded(batch)
            for row in batch:
                row.pop("y")
            return {**made, "drawn": drawn + np.random.random()}  # noqa: NPY002

    def drawn(*, proved: bool) -> float:
        torch.manual_seed(0)
        random.seed(1)
        np.random.seed(2)  # noqa: NPY002
        collate, batch = Masks(), rows(8)
        if proved:
            assert prove_order(collate, batch).kept
            assert batch == rows(8)
        return float(collate(batch)["drawn"])

    assert drawn(proved=True) == drawn(proved=False)


def test_rows_are_counted_where_they_are() -> None:
    proof = prove_order(padded, rows(8))
    assert proof.kept == (("ids", 0), ("y", 0))
    assert [rows_at(padded(rows(n)), proof.kept[0]) for n in (8, 5)] == [8, 5]
    assert rows_at({"other": 1}, proof.kept[0]) is None
    held = prove_order(KEEPS["a dataclass"], rows(8))
    assert rows_at(Holder(torch.ones(3, 2), ["a"]), held.kept[0]) == 3


def test_pytorchs_own_collator_keeps_rows() -> None:
    samples = [(torch.full((3,), float(i)), i) for i in range(8)]
    assert prove_order(default_collate, samples).kept == ((0, 0), (1, 0))
