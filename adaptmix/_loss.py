"""The loss scaler: from per-sample losses to the scalar whose gradient is the objective's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptmix._broadcast import check_broadcast
from adaptmix._checks import FloatArray
from adaptmix._types import Weights
from adaptmix._warn_once import WarnOnce
from adaptmix.data._draw import Draw
from adaptmix.data._segments import Segments
from adaptmix.errors import ObjectiveError

UNITS = ("sample", "token")


@dataclass(frozen=True, eq=False)
class RowLosses:
    """One micro-batch's unweighted losses, row by row.

    Attributes:
        values: (B,) loss of each row: with unit "sample" the mean over its supervised tokens, with
            unit "token" their sum.
        tokens: (B,) number of supervised tokens of each row.
    """

    values: Tensor
    tokens: Tensor


class DomainLossScaler:
    """Weights each row's loss so that the batch's gradient is that of the stated objective.

    With unit "sample" the objective is Σ π w (mean row loss of domain i); a row enters with the
    factor π w / (share · N), N being the rows of the step's global batch. A row whose labels are
    all masked has no loss: the mean is over the rows that have one, so the factor is divided by
    their share among the domain's rows, T̄ below. With unit "token" it is
    Σ π w (mean token loss of domain i); a row's summed loss enters with π w / (share · N · T̄), T̄
    being the domain's mean number of tokens per row. ``share`` is the one the row was drawn with,
    never today's.

    Gradients are taken to be summed over micro-batches and averaged over processes, as
    ``backward`` and ``DistributedDataParallel`` do.

    Args:
        unit: "sample" or "token".
        warn: of the run.

    Source:
        Salmani et al., arXiv:2511.06913; the correction for draws in flight and units are ours.
    """

    def __init__(self, unit: str, warn: WarnOnce | None = None) -> None:
        self.unit = unit
        self._warn = WarnOnce() if warn is None else warn
        self._looked = False
        self._last_tokens: Tensor | None = None
        self._last_shape = torch.Size()

    def rows(
        self,
        losses: Tensor,
        draw: Draw,
        mask: Tensor | None,
        segments: Segments | None = None,
    ) -> RowLosses:
        """Reduce (B,) or (B, T, …) losses to one value per row.

        Args:
            losses: unreduced losses, rows first.
            draw: of this micro-batch.
            mask: which entries of ``losses`` are supervised, the same shape; all when None.
            segments: whose rows ``losses`` and ``mask`` are of, when they are packed, (P, T).

        Raises:
            TypeError: ``losses`` is no tensor.
            ValueError: a scalar, rows that are not the draw's, losses that broadcasting made, a
                mask of another shape, or one loss per row with unit "token", segments of another
                number of rows.
        """
        if not isinstance(losses, Tensor):
            raise TypeError(f"losses must be a tensor; got {type(losses).__name__}.")
        if segments is not None:
            losses, mask = _unpacked(losses, draw, mask, segments)
        self._check(losses, draw, mask)
        if not self._looked:
            self._looked = True
            check_broadcast(losses, self._warn)
        flat = losses.reshape(len(draw), -1)
        flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
        if mask is None:
            tokens = self._all_of(flat)
        else:
            kept = mask.reshape(len(draw), -1).bool()
            tokens = kept.sum(1)
            flat = torch.where(kept, flat, 0.0)
        one = flat.shape[1] == 1
        if self.unit == "sample" and mask is None:
            return RowLosses(flat.squeeze(1) if one else flat.mean(1), tokens)
        totals = flat.squeeze(1) if one else flat.sum(1)
        if self.unit == "token":
            return RowLosses(totals, tokens)
        return RowLosses(totals / tokens.clamp(min=1), tokens)

    def _all_of(self, flat: Tensor) -> Tensor:
        """Return (B,) the number of (B, T) losses of each row."""
        alike = self._last_tokens
        if alike is None or self._last_shape != flat.shape or alike.device != flat.device:
            alike = torch.full((len(flat),), flat.shape[1], device=flat.device)
            self._last_tokens, self._last_shape = alike, flat.shape
        return alike

    def _check(self, losses: Tensor, draw: Draw, mask: Tensor | None) -> None:
        if losses.ndim == 0:
            raise ValueError(
                "losses must have one entry per row, shape (B,) or (B, T); got a scalar. "
                'Compute them with reduction="none".'
            )
        if losses.shape[0] != len(draw):
            raise ValueError(
                f"losses must have the draw's {len(draw)} rows first; got shape "
                f"{tuple(losses.shape)}. {_way_on(losses, len(draw))}"
            )
        if mask is not None and mask.shape != losses.shape:
            raise ValueError(
                f"mask must have the shape of losses {tuple(losses.shape)}; "
                f"got {tuple(mask.shape)}."
            )
        if self.unit == "token" and losses.ndim == 1:
            raise ValueError(
                'losses must have shape (B, T) with unit="token"; got (B,). Pass per-token losses '
                'and a mask, or use unit="sample".'
            )

    def weighted(
        self,
        rows: RowLosses,
        draw: Draw,
        weights: Weights,
        *,
        lengths: FloatArray,
        micro_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """Return this process's part of the objective, and the (B,) factor of each row's loss.

        Args:
            rows: of the micro-batch.
            draw: whose shares divide.
            weights: whose loss weights are in force.
            lengths: (K,) mean tokens per row with unit "token", the share of rows that have a loss
                otherwise.
            micro_rows: this process's rows in a step, batch size times accumulation.
        """
        factors = _factors(weights, draw, lengths, times=micro_rows)
        factors = factors.to(rows.values, non_blocking=True)
        if draw.held is None:
            return factors.dot(rows.values), factors
        held = draw.held.to(factors.device, non_blocking=True)
        # Not times 0: a held-out row's loss may have overflowed.
        return factors.dot(rows.values.masked_fill(held, 0.0)), factors

    def multipliers(self, draw: Draw, weights: Weights, *, lengths: FloatArray) -> Tensor:
        """Return what each row's share of a mean over rows, or tokens, is multiplied by, (B,).

        Args:
            draw: as in ``weighted``.
            weights: as in ``weighted``.
            lengths: as in ``weighted``.
        """
        return _factors(weights, draw, lengths, over=self.mean_length(draw, lengths))

    def mean_length(self, draw: Draw, lengths: FloatArray) -> float:
        """Return what a mean over the step's rows, or tokens, divides by on average, per row.

        Args:
            draw: of a micro-batch of the step.
            lengths: as in ``weighted``.
        """
        return float(draw.row_shares @ lengths)


def _way_on(losses: Tensor, rows: int) -> str:
    """Return what to do about losses of another number of rows."""
    if losses.ndim > 1 and losses.shape[1] == rows:
        return "Put rows first: losses.transpose(0, 1), and the mask alike."
    if len(losses) % rows == 0:
        return (
            "Reshape (B·T,) losses to (B, T); of several losses per row, as of pairs or crops, "
            "pass their mean."
        )
    return (
        "If collate_fn left out rows, return placeholder rows and mask their losses; if it packed "
        'rows together, pass segments=; a loss per batch needs reduction="none".'
    )


def _unpacked(
    losses: Tensor, draw: Draw, mask: Tensor | None, segments: Segments
) -> tuple[Tensor, Tensor]:
    """Return (B, L) losses of the rows that were drawn, and their mask, of packed (P, T) ones."""
    if len(segments) != len(draw):
        raise ValueError(
            f"segments must be of the draw's {len(draw)} rows; got {len(segments)}. Number "
            "them in the order of the draw, and pack all of them."
        )
    for name, values in (("losses", losses), ("mask", mask)):
        if values is not None and values.shape != segments.shape:
            raise ValueError(
                f"{name} must have the shape of the packed rows {tuple(segments.shape)}; got "
                f"{tuple(values.shape)}. Reshape (P·T,) losses to (P, T)."
            )
    kept = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask.bool()
    return segments.unpack(losses), segments.unpack(kept, fill=False)


def _factors(
    weights: Weights, draw: Draw, lengths: FloatArray, *, times: float = 1.0, over: float = 1.0
) -> Tensor:
    """Return (B,) α / (share · length · times / over) of each row; 0 where held-out.

    Where domains are used up, α of the others is scaled to sum to one.
    """
    counts = weights.objective
    if draw.spent is not None:
        counts = np.where(draw.spent, 0.0, counts)
        if not counts.any():
            raise ObjectiveError(
                "A domain that counts must be left; those with importance · loss > 0 are used up "
                "(max_epochs=). Raise their max_epochs, or end the run there with "
                'when_exhausted="stop_first".'
            )
        counts = counts / counts.sum()
    domains, shares = draw.domains.numpy(), draw.domain_shares
    if draw.own_shares is not None:
        counts, lengths, shares = counts[domains], lengths[domains], draw.own_shares
    divisor = shares * lengths * times / over
    table = np.divide(counts, divisor, out=np.zeros_like(counts), where=divisor > 0.0)
    factors = torch.from_numpy(table if draw.own_shares is not None else table[domains])
    return factors if draw.held is None else factors.masked_fill(draw.held, 0.0)
