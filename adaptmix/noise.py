"""Noise terms: what tells a noisy domain from one that is merely hard.

A domain's noise σ² is the ratio of two sums over its samples, so terms come in pairs. For squared
loss it is the residual variance. For softmax it is the quasi-likelihood dispersion
φ = E‖y − p‖² / E[1 − ‖p‖²]: a calibrated domain has φ = 1 however high its entropy, one whose
labels are noisier than the model thinks has φ > 1.

Source:
    Wedderburn, Quasi-likelihood functions (1974); McCullagh and Nelder, Generalized Linear Models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


@torch.no_grad()
def softmax(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> NoiseTerms:
    """Return the dispersion terms of a softmax output.

    Args:
        logits: (B, …, C), classes last.
        targets: (B, …) int64 class indices; ``ignore_index`` where nothing is supervised.
        ignore_index: as in ``torch.nn.functional.cross_entropy``.

    Returns:
        Terms of shape (B,): Σ‖y − p‖² and Σ(1 − ‖p‖²) over each sample's supervised positions.

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            "targets must have the shape of logits without its last dimension "
            f"{tuple(logits.shape[:-1])}; got {tuple(targets.shape)}. Classes go last."
        )
    kept = targets != ignore_index
    probabilities = logits.float().softmax(-1)
    squares = probabilities.square().sum(-1)
    chosen = probabilities.gather(-1, torch.where(kept, targets, 0).unsqueeze(-1)).squeeze(-1)
    residual = torch.where(kept, 1.0 - 2.0 * chosen + squares, 0.0)
    expected = torch.where(kept, 1.0 - squares, 0.0)
    return NoiseTerms(_per_sample(residual), _per_sample(expected))


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
