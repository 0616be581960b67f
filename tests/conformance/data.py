"""Small data with uneven domains, and tiny float64 models for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import BertConfig

from adaptmix import Mixture

VOCABULARY, CLASSES, FEATURES = 30, 4, 6
SIZES = {"web": 30, "code": 20, "math": 14}
LENGTHS = {"web": (6, 9), "code": (3, 5), "math": (10, 12)}
Rows = list[dict[str, Any]]


def _named() -> list[str]:
    names = [name for name, size in SIZES.items() for _ in range(size)]
    random.Random(0).shuffle(names)
    return names


DOMAINS = _named()
"""The domain of each row, in an order that mixes them."""


class Streamed(IterableDataset[Any]):
    """Rows that can only be read in their order."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def streams(rows: Rows) -> Mixture:
    """Rows of these domains, of which only the last is no stream; they matter by their sizes."""
    parts = {
        name: [row for row, own in zip(rows, DOMAINS, strict=True) if own == name] for name in SIZES
    }
    names = sorted(SIZES)
    streamed = {name: Streamed(parts[name]) for name in names[:-1]}
    importance = {name: float(size) for name, size in SIZES.items()}
    return Mixture(streamed | {names[-1]: parts[names[-1]]}, importance=importance)


def rows_by(make: Callable[[random.Random, str], dict[str, Any]]) -> Rows:
    """One row for each entry of ``DOMAINS``."""
    rng = random.Random(1)
    return [make(rng, name) for name in DOMAINS]


def texts(*, length: int | None = None) -> Rows:
    """Token ids of ragged rows, or of rows of one length."""
    return rows_by(lambda rng, name: {"input_ids": _ids(rng, name, length)})


def _ids(rng: random.Random, name: str, length: int | None) -> list[int]:
    size = length or rng.randint(*LENGTHS[name])
    return [3 + rng.randrange(VOCABULARY - 3) for _ in range(size)]


def classified(*, rare: float = 0.25, length: int | None = None) -> Rows:
    """Texts with a class; the last one is rare."""

    def make(rng: random.Random, name: str) -> dict[str, Any]:
        label = CLASSES - 1 if rng.random() < rare else rng.randrange(CLASSES - 1)
        return {"input_ids": _ids(rng, name, length), "labels": label}

    return rows_by(make)


def tagged(*, unsupervised: float = 0.0) -> Rows:
    """Texts with a class for every token; some rows have none that counts."""

    def make(rng: random.Random, name: str) -> dict[str, Any]:
        ids = _ids(rng, name, None)
        labels = [i % CLASSES if rng.random() < 0.8 else -100 for i in ids]
        labels[1] = 1
        if rng.random() < unsupervised:
            labels = [-100] * len(ids)
        return {"input_ids": ids, "labels": labels}

    return rows_by(make)


def causal() -> Rows:
    """Texts whose labels are their own tokens, some of which are not supervised."""

    def make(rng: random.Random, name: str) -> dict[str, Any]:
        ids = _ids(rng, name, None)
        prompt = 2 if name == "code" else 0
        return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}

    return rows_by(make)


def vectors(*, targets: str = "class", scale: float = 1.0) -> Rows:
    """Feature vectors with a class, a number or several numbers."""

    def make(rng: random.Random, name: str) -> dict[str, Any]:
        x = [scale * rng.gauss(0.0, 1.0 + 0.5 * (name == "math")) for _ in range(FEATURES)]
        target: Any = rng.randrange(CLASSES)
        if targets == "number":
            target = sum(x) + rng.gauss(0.0, 0.3)
        if targets == "flags":
            target = [float(rng.random() < 0.4) for _ in range(CLASSES)]
        return {"x": x, "labels": target}

    return rows_by(make)


def pad(rows: Sequence[Any]) -> dict[str, Tensor]:
    """Pad token ids and labels to the longest row of a batch; other entries become tensors."""
    batch: dict[str, Tensor] = {}
    ids = [row["input_ids"] for row in rows]
    longest = max(map(len, ids))
    batch["input_ids"] = torch.tensor([i + [0] * (longest - len(i)) for i in ids])
    batch["attention_mask"] = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids])
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "input_ids":
            continue
        if isinstance(values[0], list) and isinstance(values[0][0], int):
            values = [v + [-100] * (longest - len(v)) for v in values]
        batch[name] = _tensor(values)
    return batch


def stack(rows: Sequence[Any]) -> dict[str, Tensor]:
    """Make a tensor of each entry of rows that are alike; names of domains are left out."""
    numbers = [name for name, value in rows[0].items() if not isinstance(value, str)]
    return {name: _tensor([row[name] for row in rows]) for name in numbers}


def _tensor(values: list[Any]) -> Tensor:
    made = torch.tensor(values)
    return made.double() if made.is_floating_point() else made


BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def bert(kind: Any, **changes: Any) -> Callable[[], Any]:
    """Return what makes a tiny BERT of a kind, always the same, in float64."""
    return built(lambda: kind(BertConfig(**(BERT | {"num_labels": CLASSES} | changes))))


def built(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> Callable[[], Any]:
    """Return what makes a model with fixed seed, in float64 unless told otherwise."""

    def model() -> Any:
        torch.manual_seed(7)
        return make().to(dtype)

    return model
