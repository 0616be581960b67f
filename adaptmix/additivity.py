"""The proof that a loss is a sum of one term per sample, on the graph between rows and loss."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptmix.frontier import Frontier

# Of what a sample's own term is curved by. Terms of separate samples share no rounding.
_TOLERANCE = 1e-6


def gradients(loss: Tensor, frontier: Frontier, *, twice: bool = False) -> list[Tensor]:
    """Return the gradient of ``loss`` at each tensor of its frontier; the graph stays.

    Args:
        loss: () before any hook of ours is on its graph.
        frontier: of it.
        twice: whether they are differentiated in their turn.
    """
    return list(torch.autograd.grad(loss, frontier.edges, create_graph=twice, retain_graph=True))


def couplings(frontier: Frontier, first: list[Tensor], *, samples: int, seed: int) -> str | None:
    """Return what a loss has that no sum of terms per sample has, or None.

    The mixed second derivative of a sum between two of its terms is zero. A random direction in
    the rows of half of the samples is differentiated with respect to those of the other half, and
    to parameters that the loss depends on beside. A loss that is linear in pieces has no second
    derivative; see ``Rehearsal`` of the integrations for those.

    Args:
        frontier: of the loss; its tensors have k · B rows.
        first: gradients of the loss there, with a graph.
        samples: B.
        seed: of the halves and of the direction.

    Raises:
        RuntimeError: an operation that has no second derivative.
    """
    half, generator = halves(samples, seed)
    along: list[Tensor] = []
    for gradient in first:
        if not gradient.requires_grad:
            continue
        blocks = len(gradient) // samples
        direction = torch.randn(gradient.shape[1:], generator=generator, dtype=torch.float32)
        mine = half.to(gradient).repeat(blocks).reshape(-1, *(1,) * (gradient.ndim - 1))
        along.append((gradient * mine * direction.to(gradient)).sum())
    if not along or samples < 2 and not frontier.leaves:
        return None
    edges = (*frontier.edges, *frontier.leaves)
    second = torch.autograd.grad(
        torch.stack([term.float() for term in along]).sum(),
        edges,
        retain_graph=True,
        allow_unused=True,
    )
    if not all(part is None or bool(part.isfinite().all()) for part in (*second, *first)):
        return None  # an overflow of mixed precision, whose step is skipped
    rows, leaves = second[: len(frontier.edges)], second[len(frontier.edges) :]
    curved = max((float(part.abs().max()) for part in rows if part is not None), default=0.0)
    bound = _TOLERANCE * curved
    for part in rows:
        if part is not None and samples > 1:
            other = ~half.to(part.device).repeat(len(part) // samples)
            if not float(part[other].abs().max()) <= bound:
                return "one row's gradient depends on other rows"
    slope = max(float(gradient.detach().abs().max()) for gradient in first)
    for part in leaves:
        if part is not None and float(part.abs().max()) > _TOLERANCE * max(curved, slope):
            return "parameters beside the model's outputs scale the rows' losses"
    return None


def halves(samples: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """Return which of (B,) samples are in a random half, and the generator that chose them."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.zeros(samples, dtype=torch.bool)
    half[torch.randperm(samples, generator=generator)[: (samples + 1) // 2]] = True
    return half, generator
