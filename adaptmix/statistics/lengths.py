"""Mean supervised tokens per row of each domain, for the unit "token"."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from adaptmix import schema
from adaptmix.checks import FloatArray, vector
from adaptmix.errors import RowLengthWarning


def known_lengths(
    names: Sequence[str], unit: str, tokens_per_row: Mapping[str, float] | None
) -> list[float] | None:
    """Return the lengths a user gave by name, in the order of the domains.

    Raises:
        ValueError: given with unit "sample", or not for exactly the domains.
    """
    if tokens_per_row is None:
        return None
    if unit != "token":
        raise ValueError('tokens_per_row goes with unit="token"; got unit="sample". Leave it out.')
    if set(tokens_per_row) != set(names):
        raise ValueError(
            f"tokens_per_row must name exactly the domains {', '.join(names)}; "
            f"got {', '.join(map(str, tokens_per_row))}."
        )
    return [tokens_per_row[name] for name in names]


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
        self._start: FloatArray | None = None
        self._warned = False
        self._known = (
            None
            if known is None
            else vector("tokens_per_row", known, size=num_domains, minimum=0.0, strict=True)
        )

    @property
    def started(self) -> bool:
        """Whether there is anything to go by."""
        return self._known is not None or self._start is not None

    @property
    def values(self) -> FloatArray:
        """(K,) tokens per row; a domain not seen yet gets the mean over all rows."""
        if self._known is not None:
            return self._known
        if self._rows.any():
            return _per_row(self._tokens, self._rows)
        return np.ones_like(self._tokens) if self._start is None else self._start

    def start(self, tokens: FloatArray, rows: FloatArray) -> None:
        """Go by the (K,) tokens and rows of the very first micro-batch until ``add``."""
        self._start = _per_row(tokens, rows)

    def add(self, tokens: FloatArray, rows: FloatArray) -> None:
        """Add a window's (K,) tokens and rows."""
        before = self.values
        self._tokens = self._tokens + tokens
        self._rows = self._rows + rows
        if not self._warned and not np.allclose(before, self.values):
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
        return {
            "tokens": self._tokens,
            "rows": self._rows,
            "start": self._start,
            "warned": self._warned,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "lengths") -> None:
        """Take over saved sums.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        sums = schema.array(self._tokens.size, minimum=0.0)
        fields = {
            "tokens": sums,
            "rows": sums,
            "start": schema.maybe(sums),
            "warned": schema.flag,
        }
        saved = schema.read(state, fields, name=name)
        self._tokens, self._rows = saved["tokens"], saved["rows"]
        self._start, self._warned = saved["start"], saved["warned"]


def _per_row(tokens: FloatArray, rows: FloatArray) -> FloatArray:
    pooled = max(tokens.sum(), 1.0) / max(rows.sum(), 1.0)
    return np.where(tokens > 0.0, tokens / np.maximum(rows, 1.0), pooled)
