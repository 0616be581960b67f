"""The proof that a loss is a sum of one term per sample, on the graph between rows and loss."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptmix.data import Segments
from adaptmix.trainers._inputs import LossInputs, over_rows
from adaptmix.trainers._pieces import coupled_pieces, halves

# Of what a sample's own term is curved by. Terms of separate samples share no rounding.
_TOLERANCE = 1e-6


def loss_gradients(loss: Tensor, loss_inputs: LossInputs, *, twice: bool = False) -> list[Tensor]:
    """Return the gradient of ``loss`` at each tensor of its inputs; the graph stays.

    Args:
        loss: () before any hook of ours is on its graph.
        loss_inputs: of it.
        twice: whether they are differentiated in their turn.
    """
    return list(torch.autograd.grad(loss, loss_inputs.edges, create_graph=twice, retain_graph=True))


def couplings(
    loss_inputs: LossInputs,
    first: list[Tensor],
    *,
    samples: int,
    seed: int,
    segments: Segments | None = None,
) -> str | None:
    """Return what a loss has that no sum of terms per sample has, or None.

    The mixed second derivative of a sum between two of its terms is zero. A random direction in
    the rows of half of the samples is differentiated with respect to the rows of the other half.
    Functions that are linear in pieces have no second derivative: for them, what they bend at must
    depend on one row. A choice of rows that leaves no trace in the graph, such as a mask made of
    losses, stays hidden here: it shows when the other rows are exchanged.

    Args:
        loss_inputs: of the loss; its tensors have k · B rows, or the positions of packed ones.
        first: gradients of the loss there, with a graph.
        samples: B.
        seed: of the halves and of the direction.
        segments: where samples are packed; None where they are not.

    Raises:
        RuntimeError: an operation that has no second derivative.
    """
    bent = coupled_pieces(loss_inputs, samples=samples, seed=seed, segments=segments)
    if bent is not None:
        return bent
    half, generator = halves(samples, seed)
    along: list[Tensor] = []
    for gradient in first:
        if not gradient.requires_grad:
            continue
        direction = torch.randn(gradient.shape[1:], generator=generator, dtype=torch.float32)
        mine = over_rows(half, gradient, segments)
        along.append((gradient * mine * direction.to(gradient)).sum())
    if not along or samples < 2:
        return None
    total = torch.stack([term.float() for term in along]).sum()
    rows = torch.autograd.grad(total, loss_inputs.edges, retain_graph=True, allow_unused=True)
    if not all(part is None or bool(part.isfinite().all()) for part in (*rows, *first)):
        return None  # an overflow of mixed precision, whose step is skipped
    curved = max((float(part.abs().max()) for part in rows if part is not None), default=0.0)
    bound = _TOLERANCE * curved
    for part in rows:
        if part is not None:
            other = over_rows(~half, part, segments)
            if not float((part * other).abs().max()) <= bound:
                return "one row's gradient depends on other rows"
    return None
