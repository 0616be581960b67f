"""Noise terms: they separate a noisy domain from one that is merely hard.

A domain's noise σ² is the ratio of two sums over its samples, so terms come in pairs. For squared
loss it is the residual variance. For softmax it is the quasi-likelihood dispersion
φ = E‖y − p‖² / E[1 − ‖p‖²]: a calibrated domain has φ = 1 however high its entropy, one whose
labels are noisier than the model thinks has φ > 1.

The probability p_y of the right class alone cannot separate the two. If p_y is 1/2 at every token,
φ is 1 where p has two classes of 1/2 each, and near 1/3 where the other half of p is spread over
many classes, because ‖p‖² depends on all of p. So where logits are not kept, as in a head that is
fused with the loss, the logits of a few positions are computed once more.

Source:
    Wedderburn, Quasi-likelihood functions (1974); McCullagh and Nelder, Generalized Linear Models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adaptmix._checks import integer

__all__ = ["NoiseTerms", "softmax", "squared"]

# Starts of evenly spaced positions, and an odd multiplier that spreads integers over them (Knuth).
_STARTS = 2**16
_MIX = 40503


class NoiseTerms(NamedTuple):
    """Per-sample terms of a domain's noise, σ² = Σ residual / Σ expected.

    Attributes:
        residual: (B,) squared residuals, summed over what is supervised in each sample.
        expected: (B,) their expectation if the model were right and σ² were 1.
    """

    residual: Tensor
    expected: Tensor

    @classmethod
    def of(cls, noise: NoiseTerms | Tensor, *, size: int | None = None) -> NoiseTerms:
        """Return terms as they are, or squared residuals with an expectation of 1 each.

        Args:
            noise: terms, or a (B,) tensor of squared residuals.
            size: the B it must have; any when None.

        Raises:
            TypeError: neither of the two.
            ValueError: terms that are not (B,).
        """
        if isinstance(noise, Tensor):
            noise = cls(noise, torch.ones_like(noise))
        elif not isinstance(noise, NoiseTerms):
            raise TypeError(
                "noise must be terms of adaptmix.noise or a (B,) tensor; "
                f"got {type(noise).__name__}."
            )
        rows = noise.residual.shape[0] if size is None and noise.residual.ndim else size
        if any(term.shape != (rows,) for term in noise):
            raise ValueError(
                f"noise must have one term per row ({rows}); got shapes "
                f"{tuple(noise.residual.shape)} and {tuple(noise.expected.shape)}."
            )
        return noise


LogitsOf = Callable[[Tensor], Tensor]
"""(n,) places among the flattened targets -> their (n, C) logits."""


@torch.no_grad()
def softmax(
    logits: Tensor | LogitsOf,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    positions: int | None = 16,
) -> NoiseTerms:
    """Return the dispersion terms of a softmax output.

    Args:
        logits: (B, …, C), classes last; or a function that computes only those that are needed,
            from (n,) places among the flattened targets to (n, C).
        targets: (B, …) int64 class indices; ``ignore_index`` where nothing is supervised.
        ignore_index: as in ``torch.nn.functional.cross_entropy``.
        positions: how many supervised positions of a longer row are used; all when None. They are
            evenly spaced from a start that differs between rows. Each row's terms are then
            unbiased, and a second softmax over a large vocabulary takes a fraction of its time
            and memory.

    Returns:
        Terms of shape (B,): Σ‖y − p‖² and Σ(1 − ‖p‖²) over each sample's supervised positions.

    Raises:
        ValueError: shapes that do not fit, or no position.
    """
    if isinstance(logits, Tensor) and logits.shape[:-1] != targets.shape:
        raise ValueError(
            "targets must have the shape of logits without its last dimension "
            f"{tuple(logits.shape[:-1])}; got {tuple(targets.shape)}. Classes go last."
        )
    targets = targets.reshape(targets.shape[0], -1)
    kept = targets != ignore_index
    labels = torch.where(kept, targets, 0)
    supervised = kept.sum(1)
    chosen: Tensor | None = None
    stand_for: Tensor | None = None
    if positions is not None and integer("positions", positions, minimum=1) < labels.shape[1]:
        chosen = _spread(kept, labels.sum(1), positions)
        labels = labels.flatten()[chosen]
        kept, stand_for = (supervised > 0).unsqueeze(1), supervised / positions
    if isinstance(logits, Tensor):
        outputs = logits.reshape(-1, logits.shape[-1])
        outputs = outputs if chosen is None else outputs.index_select(0, chosen.flatten())
    else:
        every = torch.arange(labels.numel(), device=labels.device)
        outputs = logits(every if chosen is None else chosen.flatten())
    probabilities = outputs.view(*labels.shape, -1).softmax(-1, dtype=torch.float32)
    squares = torch.linalg.vector_norm(probabilities, dim=-1).square()
    right = probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    spread, hits = (torch.where(kept, term, 0.0).sum(1) for term in (squares, right))
    if stand_for is not None:
        spread, hits = spread * stand_for, hits * stand_for
    expected = supervised - spread
    return NoiseTerms(expected + 2.0 * (spread - hits), expected)


def _spread(kept: Tensor, seed: Tensor, number: int) -> Tensor:
    """Return (B, number) evenly spaced positions of those kept, with a start from ``seed``.

    Systematic sampling: over all starts, each kept position is taken equally often. The start is
    hashed from what is at hand, for a draw would move the run's random state.

    Args:
        kept: (B, P) bool.
        seed: (B,) int64.
        number: of positions, repeated where fewer are kept.

    Returns:
        Positions in the flattened (B · P,).
    """
    B, P = kept.shape
    ranks = kept.cumsum(1)
    start = (seed * _MIX % _STARTS).unsqueeze(1)
    ticks = start + torch.arange(0, number * _STARTS, _STARTS, device=kept.device)
    wanted = ticks * ranks[:, -1:] // (number * _STARTS)
    chosen = torch.searchsorted(ranks, wanted, right=True).clamp_(max=P - 1)
    return chosen + torch.arange(0, B * P, P, device=kept.device).unsqueeze(1)


@torch.no_grad()
def squared(predictions: Tensor, targets: Tensor) -> NoiseTerms:
    """Return the residual-variance terms of a squared loss.

    Args:
        predictions: (B, …).
        targets: (B, …), the same shape.

    Returns:
        Terms of shape (B,): Σ(ŷ − y)² and the number of outputs of each sample.

    Raises:
        ValueError: different shapes, which would broadcast to pairs that do not belong together.
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            "targets must have the shape of predictions "
            f"{tuple(predictions.shape)}; got {tuple(targets.shape)}. Reshape one of them."
        )
    residual = (predictions.float() - targets.float()).square()
    return NoiseTerms(_per_sample(residual), _per_sample(torch.ones_like(residual)))


def _per_sample(terms: Tensor) -> Tensor:
    return terms.reshape(terms.shape[0], -1).sum(1)
