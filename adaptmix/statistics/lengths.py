"""Mean supervised tokens per row of each domain, for the unit "token"."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from adaptmix.checks import FloatArray, vector
from adaptmix.errors import RowLengthWarning

_TOKENS_ESTIMATED = (
    "Rows differ in length and tokens_per_row is not given: the mean tokens per row are estimated "
    "while training. For an objective exact from the first step pass "
    "Controller(tokens_per_row={domain: mean supervised tokens per row})."
)
_LOSSES_ESTIMATED = (
    "Some rows have no supervised label, and so no loss. The objective is the mean over the "
    "others, whose share is estimated while training. To be exact from the first step leave these "
    "rows out, or pass Controller(tokens_per_row={domain: share of rows that have a loss})."
)


def known_lengths(
    names: Sequence[str], unit: str, tokens_per_row: Mapping[str, float] | None
) -> list[float] | None:
    """Return the lengths a user gave by name, in the order of the domains.

    Raises:
        ValueError: more than one with unit "sample", or not for exactly the domains.
    """
    if tokens_per_row is None:
        return None
    if unit != "token" and max(tokens_per_row.values(), default=0.0) > 1.0:
        raise ValueError(
            'tokens_per_row must be at most 1 with unit="sample", where it is the share of rows '
            f"that have a loss; got {max(tokens_per_row.values())}. Leave it out."
        )
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
        per_token: whether they are tokens, and not losses of which a row has one or none.
    """

    def __init__(
        self, num_domains: int, known: ArrayLike | None = None, *, per_token: bool = True
    ) -> None:
        self._per_token = per_token
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
        if not self._rows.any():
            return np.ones_like(self._tokens) if self._start is None else self._start
        return _per_row(self._tokens, self._rows)

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
            message = _TOKENS_ESTIMATED if self._per_token else _LOSSES_ESTIMATED
            warnings.warn(message, RowLengthWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain arrays."""
        return {
            "tokens": self._tokens,
            "rows": self._rows,
            "start": self._start,
            "warned": self._warned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved sums."""
        size = self._tokens.size
        self._tokens = vector("tokens", state["tokens"], size=size, minimum=0.0)
        self._rows = vector("rows", state["rows"], size=size, minimum=0.0)
        start = state["start"]
        self._start = None if start is None else vector("start", start, size=size, minimum=0.0)
        self._warned = bool(state["warned"])


def _per_row(tokens: FloatArray, rows: FloatArray) -> FloatArray:
    pooled = max(tokens.sum(), 1.0) / max(rows.sum(), 1.0)
    return np.where(tokens > 0.0, tokens / np.maximum(rows, 1.0), pooled)
