"""What a batch of the trainer looks like before training: its unit, and tokens per row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptmix import Mixture
from adaptmix_transformers.rows import IGNORED

# Rows looked at, of each domain and in all: enough for a mean, and done in well under a second.
_PER_DOMAIN, _IN_ALL = 64, 4096


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Draw with fixed seeds, the same on every process, and leave the run's as they were."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng([torch.cuda.current_device()] if used else []):
        try:
            torch.default_generator.manual_seed(seed)
            if used:
                torch.cuda.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])


def mean_tokens(
    mixture: Mixture, collate: Any, *, shifted: bool, seed: int
) -> dict[str, float] | None:
    """Return each domain's mean supervised tokens per row, or None where rows are not tokens.

    Args:
        mixture: of the run.
        collate: what makes a batch of rows.
        shifted: whether the first label of a row is never predicted.
        seed: of collators that mask at random.
    """
    K = len(mixture.domains)
    each = max(2, min(_PER_DOMAIN, _IN_ALL // K))
    means = {}
    with own_randomness(seed):
        for domain, name in enumerate(mixture.domains):
            size = int(mixture.sizes[domain])
            places = np.unique(np.linspace(0, size - 1, min(each, size)).astype(np.int64))
            rows = mixture.rows_of(domain, places).tolist()
            labels = _labels(collate(mixture.__getitems__(rows)))
            if labels is None or len(labels) != len(rows):
                return None
            kept = labels[:, int(shifted) :] != IGNORED
            means[name] = max(float(kept.sum()) / len(rows), 1.0)
    return means


def _labels(batch: Any) -> Tensor | None:
    labels = batch.get("labels") if hasattr(batch, "get") else None
    tokens = isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()
    return labels if tokens else None
