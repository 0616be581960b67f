"""The record of how a micro-batch was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptmix._checks import FloatArray
from adaptmix.data._layout import Layout
from adaptmix.data._segments import Segments


@dataclass(frozen=True, eq=False)
class Draw:
    """How one process's rows of a micro-batch were drawn; ``loader.with_draws()`` yields it.

    Attributes:
        domains: (B,) int64, the domain of each row.
        shares: (B,) float32, the share that each row's loss is divided by: its domain's realised
            share of the step's global batch where at least one row of the domain is certain, its
            expected share elsewhere. Both are unbiased; the first has less variance.
        rows: (B,) int64, row indices into the mixture.
        fresh: (B,) bool, whether this is the first time the run draws the row.
        ordinal: number of the micro-batch since the run began.
        step: optimizer step it belongs to, ordinal // accumulation.
        layout: how its step is cut into micro-batches.
        domain_shares: (K,) float64, the shares above per domain, unrounded. As some are realised
            and others expected, they need not add up to 1.
        row_shares: (K,) float64, the realised share of every domain in the step's global batch.
        plan: identity of the plan that drew it.
        tokens: (B,) supervised tokens of each row, where they are counted in the batch.
        spent: (K,) bool, domains whose rows are used up, and which no longer count in the
            objective; None where none is.
        segments: where the collator packed the rows into fewer; None where it did not.
        held: (B,) bool, which rows are held out and do not count in the loss; None where none are.
        own_shares: (B,) float64, ``shares`` unrounded where somebody else's loader drew the rows,
            each with shares of its own; ``domain_shares`` are NaN then, and ``rows`` -1.
    """

    domains: Tensor
    shares: Tensor
    rows: Tensor
    fresh: Tensor
    ordinal: int
    step: int
    layout: Layout
    domain_shares: FloatArray
    row_shares: FloatArray
    plan: object
    tokens: Tensor | None = None
    spent: NDArray[np.bool_] | None = None
    segments: Segments | None = None
    held: Tensor | None = None
    own_shares: FloatArray | None = None

    @classmethod
    def build(
        cls,
        *,
        domains: NDArray[np.int64],
        rows: NDArray[np.int64],
        fresh: NDArray[np.bool_],
        domain_shares: FloatArray,
        row_shares: FloatArray,
        ordinal: int,
        step: int,
        layout: Layout,
        plan: object,
        spent: NDArray[np.bool_] | None = None,
        held: NDArray[np.bool_] | None = None,
    ) -> Draw:
        """Build the tensors of a draw from the plan's arrays."""
        return cls(
            domains=torch.from_numpy(domains),
            shares=torch.from_numpy(domain_shares[domains].astype(np.float32)),
            rows=torch.from_numpy(rows),
            fresh=torch.from_numpy(fresh),
            ordinal=ordinal,
            step=step,
            layout=layout,
            domain_shares=domain_shares,
            row_shares=row_shares,
            plan=plan,
            spent=spent,
            held=torch.from_numpy(held) if held is not None and held.any() else None,
        )

    def __len__(self) -> int:
        return int(self.domains.shape[0])
