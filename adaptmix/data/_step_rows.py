"""The rows of one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray
from adaptmix.data._holdout import HeldRows


@dataclass(frozen=True, eq=False)
class StepRows:
    """The global batch of one optimizer step, over all micro-batches and processes.

    Attributes:
        step: the optimizer step.
        rows: (N,) int64 rows, in random order.
        domains: (N,) int64 domain of each row.
        fresh: (N,) bool, whether the run draws the row for the first time.
        domain_shares: (K,) what multipliers divide by, as ``StepCounts`` has it.
        row_shares: (K,) every domain's realised share of the rows, held-out ones included.
        spent: (K,) bool, the domains whose rows are used up; None where none is.
        held: (N,) bool, which rows are held out; None where the step has none.
    """

    step: int
    rows: NDArray[np.int64]
    domains: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    domain_shares: FloatArray
    row_shares: FloatArray
    spent: NDArray[np.bool_] | None = None
    held: NDArray[np.bool_] | None = None

    def in_order(self, order: NDArray[np.int64]) -> StepRows:
        """Return the same rows, with all that belongs to them, in another order."""
        return replace(
            self,
            rows=self.rows[order],
            domains=self.domains[order],
            fresh=self.fresh[order],
            held=None if self.held is None else self.held[order],
        )

    def with_held(self, riding: HeldRows, held: NDArray[np.bool_] | None) -> StepRows:
        """Return these rows, and held-out ones at the places that are ``held``; none where None."""
        if held is None:
            return self
        rows, domains = np.empty((2, held.size), dtype=np.int64)
        rows[held], rows[~held] = riding.rows, self.rows
        domains[held], domains[~held] = riding.domains, self.domains
        fresh = np.zeros(held.size, dtype=np.bool_)
        fresh[~held] = self.fresh
        K = self.row_shares.size
        shares = self.row_shares + np.bincount(riding.domains, minlength=K) / held.size
        return replace(self, rows=rows, domains=domains, fresh=fresh, row_shares=shares, held=held)
