"""Mean supervised tokens per row of each domain, for the unit "token"."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from adaptmix.checks import FloatArray, vector
from adaptmix.errors import RowLengthWarning


class RowLengths:
    """T̄, (K,): known from the start, or the mean over all rows trained on so far.

    With known lengths the token objective is exact from the first step. Estimated ones enter each
    step from the steps before it, so they carry their own sampling error, which fades as the
    number of rows grows; a warning says so once where rows really differ in length.

    Args:
        num_domains: K.
        known: (K,) mean tokens per row, or None to estimate.
    """

    def __init__(self, num_domains: int, known: ArrayLike | None = None) -> None:
        self._tokens = np.zeros(num_domains)
        self._rows = np.zeros(num_domains)
        self._warned = False
        self._known = (
            None
            if known is None
            else vector("tokens_per_row", known, size=num_domains, minimum=0.0, strict=True)
        )

    @property
    def started(self) -> bool:
        """Whether there is anything to go by."""
        return self._known is not None or bool(self._tokens.sum() > 0.0)

    @property
    def values(self) -> FloatArray:
        """(K,) tokens per row; a domain not seen yet gets the mean over all rows."""
        if self._known is not None:
            return self._known
        pooled = self._tokens.sum() / max(self._rows.sum(), 1.0)
        seen = self._tokens > 0.0
        return np.where(seen, self._tokens / np.maximum(self._rows, 1.0), pooled)

    def add(self, tokens: FloatArray, rows: FloatArray) -> None:
        """Add a window's (K,) tokens and rows."""
        before = self.values if self.started else None
        self._tokens = self._tokens + tokens
        self._rows = self._rows + rows
        if before is not None and not self._warned and not np.allclose(before, self.values):
            self._warned = True
            warnings.warn(
                "Rows differ in length and tokens_per_row is not given: the mean tokens per row "
                "are estimated while training. For an objective exact from the first step pass "
                "Controller(tokens_per_row={domain: mean supervised tokens per row}).",
                RowLengthWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain arrays."""
        return {"tokens": self._tokens, "rows": self._rows, "warned": self._warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved sums."""
        self._tokens = np.array(state["tokens"], dtype=np.float64)
        self._rows = np.array(state["rows"], dtype=np.float64)
        self._warned = bool(state["warned"])
