"""Losses and noise of preference pairs, where TRL's loss is the mean of −log σ(margin)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from adaptmix.noise import NoiseTerms
from adaptmix.trainers import LossInputs
from adaptmix_transformers._recognition import tolerance
from adaptmix_transformers._rows import RowLosses


class Margins(TorchFunctionMode):
    """Keeps what log σ is taken of, where there is no graph to read it from.

    Args:
        pairs: B.
    """

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self._pairs, self._seen = pairs, list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at it."""
        if func is functional.logsigmoid and args[0].shape == (self._pairs,):
            self._seen.append(args[0].detach())
        return func(*args, **(kwargs or {}))

    def losses(self, loss: Tensor) -> RowLosses | None:
        """Return the loss of each pair, where their mean is the loss; None elsewhere."""
        if len(self._seen) != 1:
            return None
        rows = _of_margins(self._seen[0])
        close = (loss - rows.values.mean()).abs() <= 1e-3 * rows.values.mean()
        return rows if bool(close) else None


def pair_losses(loss: Tensor, loss_inputs: LossInputs, pairs: int) -> RowLosses | None:
    """Return the loss of each pair, with its noise; None where the loss is of another kind.

    Where the loss is the mean over pairs of ℓ_j = −log σ(x_j), its gradient at the margins x is
    −σ(−x_j) / B, which is checked, as is its value. The model then gives p_j = σ(x_j) to the answer
    that was preferred. The noise is the dispersion of a Bernoulli variable of which that is the
    outcome 1, so its terms are (1 − p_j)² and p_j (1 − p_j), whichever answer comes first.

    Args:
        loss: () of a micro-batch, before its gradients are weighted.
        loss_inputs: of it.
        pairs: B.
    """
    nodes: list[Any] = [n for n in loss_inputs.between if n.name() == "LogSigmoidBackward0"]
    if len(nodes) != 1:
        return None
    (node,) = nodes
    margins: Tensor = node._saved_self.detach()
    if margins.shape != (pairs,):
        return None
    (gradient,) = torch.autograd.grad(
        loss, GradientEdge(*node.next_functions[0]), retain_graph=True
    )
    values = -functional.logsigmoid(margins.float())
    rounding = 10.0 * tolerance(gradient.dtype)
    stated = -torch.sigmoid(-margins) / pairs
    same = torch.stack(
        [
            (gradient - stated).norm() <= rounding * stated.norm(),
            (loss.detach() - values.mean()).abs() <= rounding * values.mean(),
        ]
    )
    if not bool(same.all()):
        return None
    return _of_margins(margins)


def _of_margins(margins: Tensor) -> RowLosses:
    values = -functional.logsigmoid(margins.float())
    right = torch.sigmoid(margins.float())
    return RowLosses(
        values, noise=lambda _: NoiseTerms((1.0 - right).square(), right * (1.0 - right))
    )
