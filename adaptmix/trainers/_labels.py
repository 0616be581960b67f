"""Counts of labels in a sample of rows, before training: the unit, and tokens per row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptmix.data import Mixture, Segments, find_segments, sample_lengths

IGNORED = -100
_PER_DOMAIN = 64  # enough for a mean, and done in well under a second


@dataclass(frozen=True)
class Labels:
    """Counts of the labels of each domain's rows, by the domain's name.

    Attributes:
        tokens: mean supervised tokens per row; None where labels are not token by token.
        supervised: share of rows with a supervised label, in [0, 1]; None without labels.
    """

    tokens: dict[str, float] | None = None
    supervised: dict[str, float] | None = None


def count_labels(
    mixture: Mixture, collate: Callable[[list[Any]], Any], *, shifted: bool, seed: int
) -> Labels:
    """Count ``batch["labels"]`` in some rows of each domain.

    Args:
        mixture: of the run.
        collate: makes a batch of rows.
        shifted: whether the first label of a row is never predicted.
        seed: of collators that mask at random.
    """
    numbers: list[Tensor] = []
    shapes: set[int] = set()

    def collated(rows: list[Any]) -> tuple[Any, Segments | None]:
        batch = collate(rows)
        return batch, find_segments(rows, batch)

    def count(collated: tuple[Any, Segments | None]) -> Tensor | None:
        labels, segments = _labels(collated[0]), collated[1]
        if labels is None:
            return None
        shapes.add(labels.ndim)
        kept = labels.reshape(len(labels), -1) != IGNORED
        if shifted and labels.ndim == 2:
            kept = kept[:, 1:]  # of the position before each
        if segments is not None:
            kept = segments.unpack(segments.completed(kept, fill=False), fill=False)
        numbers.append(kept.sum(1).cpu())
        return numbers[-1]

    sampled = sample_lengths(
        mixture, collated, count, seed=seed, per_domain=_PER_DOMAIN, strict=False
    )
    if sampled is None:
        return Labels()
    each = np.split(torch.cat(numbers).numpy(), np.cumsum(sampled.rows).astype(int)[:-1])
    tokens = {
        name: max(float(part.mean()), 1.0 / len(part))
        for name, part in zip(mixture.domains, each, strict=True)
    }
    supervised = {
        name: max(float((part > 0).mean()), 1.0 / len(part))
        for name, part in zip(mixture.domains, each, strict=True)
    }
    return Labels(tokens if shapes == {2} else None, supervised)


def _labels(batch: Any) -> Tensor | None:
    labels = batch.get("labels") if hasattr(batch, "get") else None
    whole = isinstance(labels, Tensor) and labels.ndim in (1, 2) and not labels.is_floating_point()
    return labels if whole else None
