"""What a batch of the trainer looks like before training: its unit, and tokens per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from adaptmix import Mixture
from adaptmix.data import own_randomness
from adaptmix_transformers._rows import IGNORED

# Rows looked at, of each domain and in all: enough for a mean, and done in well under a second.
_PER_DOMAIN, _IN_ALL = 64, 4096


@dataclass(frozen=True)
class Labels:
    """What labels tell of each domain's rows.

    Attributes:
        tokens: mean supervised tokens per row; None where labels are not token by token.
        supervised: share of rows that have a supervised label; None where labels do not tell.
    """

    tokens: dict[str, float] | None = None
    supervised: dict[str, float] | None = None


def count_labels(mixture: Mixture, collate: Any, *, shifted: bool, seed: int) -> Labels:
    """Return what the labels of a sample of each domain's rows tell.

    Args:
        mixture: of the run.
        collate: what makes a batch of rows.
        shifted: whether the first label of a row is never predicted.
        seed: of collators that mask at random.
    """
    tokens: dict[str, float] = {}
    supervised: dict[str, float] = {}
    by_token = True
    with own_randomness(seed, collate):
        for domain, name in enumerate(mixture.domains):
            batch, size = sample_batch(mixture, collate, domain)
            labels = _labels(batch)
            if labels is None or len(labels) != size:
                return Labels()
            by_token &= labels.ndim == 2
            kept = labels.reshape(size, -1)[:, int(shifted and labels.ndim == 2) :] != IGNORED
            tokens[name] = max(float(kept.sum()) / size, 1.0 / size)
            supervised[name] = max(float(kept.any(1).sum()) / size, 1.0 / size)
    return Labels(tokens if by_token else None, supervised)


def sample_batch(mixture: Mixture, collate: Any, domain: int) -> tuple[Any, int]:
    """Return a batch of rows spread over a domain, and how many they are."""
    each = max(2, min(_PER_DOMAIN, _IN_ALL // len(mixture.domains)))
    size = int(mixture.sizes[domain])
    places = np.unique(np.linspace(0, size - 1, min(each, size)).astype(np.int64))
    rows = mixture.rows_of(domain, places).tolist()
    return collate(mixture.__getitems__(rows)), len(rows)


def _labels(batch: Any) -> Tensor | None:
    labels = batch.get("labels") if hasattr(batch, "get") else None
    whole = isinstance(labels, Tensor) and labels.ndim in (1, 2) and not labels.is_floating_point()
    return labels if whole else None
