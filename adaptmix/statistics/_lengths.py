"""Mean supervised tokens per row of each domain, for the unit "token"."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from adaptmix._checks import FloatArray, vector
from adaptmix.errors import RowLengthWarning
from adaptmix.state import _schema as schema

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


def known_lengths(names: Sequence[str], unit: str, tokens_per_row: object) -> list[float] | None:
    """Return the lengths a user gave by name, in the order of the domains; None for a function.

    Raises:
        TypeError: neither a mapping nor, with unit "token", a function.
        ValueError: more than one with unit "sample", or not for exactly the domains.
    """
    if tokens_per_row is None:
        return None
    if callable(tokens_per_row) and unit == "token":
        return None
    if not isinstance(tokens_per_row, Mapping):
        raise TypeError(
            'tokens_per_row must map each domain to a number or, with unit="token", be a function '
            f"of a batch; got {type(tokens_per_row).__name__}."
        )
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


_HOW = (
    "Pass tokens_per_row={domain: mean supervised tokens per row}, or a function that counts them "
    "in a batch, such as lambda batch: (batch['labels'] != -100).sum(1); count what the mask of "
    "loss() keeps."
)
# Known lengths may be this far off what rows have: in all, and by chance after n rows.
_OFF, _BY_CHANCE = 0.05, 5.0


class RowLengths:
    """T̄, (K,): the mean tokens per row that the token objective divides by.

    They come from one of four places. Known ones stay. Those of a sample of each domain's rows
    are refined by the rows trained on, except where the sample is the whole domain. Without
    either, rows must all have the same number of tokens, which is checked at every update. A run
    that only observes may estimate them from the first micro-batch on.

    Args:
        num_domains: K.
        known: (K,) mean tokens per row, or None.
        per_token: whether they are tokens, and not losses of which a row has one or none.
    """

    def __init__(
        self, num_domains: int, known: ArrayLike | None = None, *, per_token: bool = True
    ) -> None:
        self._per_token = per_token
        self._tokens = np.zeros(num_domains)
        self._rows = np.zeros(num_domains)
        self._sampled = np.zeros((2, num_domains))
        self._whole = np.zeros(num_domains)
        self._start: FloatArray | None = None
        self._values: FloatArray | None = None  # until something is added
        self._constant = False
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
        if self._values is None:
            self._values = self._estimate()
        return self._values

    def _estimate(self) -> FloatArray:
        if self._known is not None:
            return self._known
        if self._constant and self._start is not None:
            return self._start
        if not self._rows.any():
            return np.ones_like(self._tokens) if self._start is None else self._start
        tokens, rows = self._sampled + np.stack([self._tokens, self._rows])
        estimated = _per_row(tokens, rows)
        return estimated if self._start is None else np.where(self._whole, self._start, estimated)

    def sample(self, tokens: FloatArray, rows: FloatArray, whole: ArrayLike) -> None:
        """Start from (K,) tokens and rows of a sample, and whether it is the whole domain."""
        self._sampled = np.stack([tokens, rows])
        self._whole = np.asarray(whole, dtype=np.float64)
        self._start, self._values = np.maximum(_per_row(tokens, rows), 1.0), None

    def start(
        self, tokens: FloatArray, rows: FloatArray, squares: FloatArray, *, adapting: bool
    ) -> None:
        """Start from the very first micro-batch.

        Args:
            tokens: (K,) of its rows.
            rows: (K,) number of them.
            squares: (K,) sum of their squared tokens.
            adapting: whether the objective depends on the lengths; estimates do otherwise.

        Raises:
            ValueError: it does, and rows have different numbers of tokens.
        """
        self._constant = float(squares.sum() * rows.sum()) == float(tokens.sum()) ** 2
        if adapting and not self._constant:
            raise ValueError(
                'tokens_per_row must be given with unit="token" where rows have different numbers '
                "of tokens, for every token counts the same only if the mean number per row of "
                f"each domain is known from the first step on. {_HOW}"
            )
        self._start, self._values = _per_row(tokens, rows), None

    def add(self, tokens: FloatArray, rows: FloatArray) -> None:
        """Add a window's (K,) tokens and rows.

        Raises:
            ValueError: rows have other numbers of tokens than the first ones, and it is not known
                how many.

        Warns:
            RowLengthWarning: once, when lengths are estimated, or are not those of the rows.
        """
        before = self.values
        self._tokens = self._tokens + tokens
        self._rows, self._values = self._rows + rows, None
        if self._constant and not np.allclose(tokens, before * rows, rtol=1e-6):
            raise ValueError(
                f"tokens_per_row must be given: all rows of the first batch had {before[0]:g} "
                f"tokens, and now the mean is {tokens.sum() / rows.sum():.6g}. {_HOW}"
            )
        if self._warned:
            return
        if self._known is not None:
            self._check_known(self._known)
        elif not self._sampled.any() and not np.allclose(before, self.values):
            self._warn(_TOKENS_ESTIMATED if self._per_token else _LOSSES_ESTIMATED)

    def _check_known(self, known: FloatArray) -> None:
        found = self._tokens / np.maximum(self._rows, 1.0)
        off = np.abs(found / known - 1.0) * (self._rows > 0.0)
        beyond = off > np.maximum(_OFF, _BY_CHANCE / np.sqrt(np.maximum(self._rows, 1.0)))
        if beyond.any():
            at = int(beyond.argmax())
            self._warn(
                f"tokens_per_row says {known[at]:g} for domain {at}, and the rows trained on have "
                f"{found[at]:.4g} on average, so its tokens count {off[at]:.0%} too much or too "
                "little. Count the tokens that the mask of loss() keeps: where labels are "
                "shifted, one less than the row has."
            )

    def _warn(self, message: str) -> None:
        self._warned = True
        warnings.warn(message, RowLengthWarning, stacklevel=3)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain arrays."""
        return {
            "tokens": self._tokens,
            "rows": self._rows,
            "sampled_tokens": self._sampled[0],
            "sampled_rows": self._sampled[1],
            "whole": self._whole,
            "start": self._start,
            "constant": self._constant,
            "warned": self._warned,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "lengths") -> None:
        """Take over saved sums.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        sums = schema.array(self._tokens.size, minimum=0.0)
        fields = {
            **dict.fromkeys(("tokens", "rows", "sampled_tokens", "sampled_rows", "whole"), sums),
            "start": schema.maybe(sums),
            "constant": schema.flag,
            "warned": schema.flag,
        }
        saved = schema.read(state, fields, name=name)
        self._tokens, self._rows, self._whole = saved["tokens"], saved["rows"], saved["whole"]
        self._sampled = np.stack([saved["sampled_tokens"], saved["sampled_rows"]])
        self._start, self._constant = saved["start"], saved["constant"]
        self._warned, self._values = saved["warned"], None


def _per_row(tokens: FloatArray, rows: FloatArray) -> FloatArray:
    pooled = max(tokens.sum(), 1.0) / max(rows.sum(), 1.0)
    return np.where(tokens > 0.0, tokens / np.maximum(rows, 1.0), pooled)
