"""Couplings between rows that have no curvature: hinges, maxima and sorted values of several."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from adaptmix.data import Segments
from adaptmix.trainers._inputs import LossInputs, Place, over_rows

# Functions of each entry that are linear in pieces; with several inputs, of the entries in a place.
_OF_ENTRIES = frozenset(
    {
        *("Relu", "LeakyRelu", "PreluKernel", "Threshold", "Hardtanh", "Abs", "Sgn"),
        *("Clamp", "ClampMin", "ClampMax", "Maximum", "Minimum", "Fmax", "Fmin"),
        *("Hardshrink", "Softshrink", "SmoothL1Loss", "HuberLoss"),
    }
)
# Functions that choose among the entries along a dim, or among all.
_OF_SLICES = frozenset(
    {
        *("Max", "Min", "Amax", "Amin", "Aminmax", "Sort", "Topk", "Kthvalue", "Median"),
        *("Nanmedian", "Mode", "Cummax", "Cummin"),
    }
)
_TOLERANCE = 1e-6  # of the largest change of an input


def coupled_pieces(
    loss_inputs: LossInputs, *, samples: int, seed: int, segments: Segments | None = None
) -> str | None:
    """Return what couples rows in functions that are linear in pieces, or None.

    The second derivative of such a function is zero, so it shows nothing. What goes into
    it shows more: rows are coupled where an entry that it bends at, or entries that it chooses
    among, change with the rows of some samples and with those of others. All of them are looked at
    together, in the graph that there is, by three passes through the part behind the loss_inputs.

    Args:
        loss_inputs: of the loss; its tensors have k · B rows, or the positions of packed ones.
        samples: B.
        seed: of the halves that samples are parted in, and of the direction that they change in.
        segments: where samples are packed; None where they are not.

    Raises:
        RuntimeError: an operation that cannot be differentiated twice.
    """
    found = [(node, _inputs(node)) for node in loss_inputs.between if _kind(node) is not None]
    edges = list(dict.fromkeys(edge for _, inputs in found for edge in inputs))
    if not edges or samples < 2:
        return None
    with torch.enable_grad():
        mine, others = _changes(loss_inputs, edges, halves(samples, seed), segments)
    for node, inputs in found:
        dims = _dims(node) if _kind(node) in _OF_SLICES else None
        a, b = (_moved([part[edge] for edge in inputs]) for part in (mine, others))
        if dims is not None:
            a, b = (_any(part, dims) for part in (a, b))
        if bool((a & b).any()):
            name = node.name().split("Backward")[0]
            return f"{name} of a value that depends on several rows bends their gradients"
    return None


def _changes(
    loss_inputs: LossInputs,
    edges: list[Place],
    parted: tuple[Tensor, torch.Generator],
    segments: Segments | None,
) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
    """Return how the tensors at edges change with each half of the samples, to first order."""
    half, generator = parted
    cotangents = [_ones(node, number) for node, number in edges]
    back = torch.autograd.grad(
        [GradientEdge(*edge) for edge in edges],
        loss_inputs.edges,
        cotangents,
        create_graph=True,
        retain_graph=True,
        allow_unused=True,
    )
    sides: list[dict[Place, Tensor]] = []
    directions = [
        None if part is None else torch.randn(part.shape, generator=generator).to(part)
        for part in back
    ]
    for chosen in (half, ~half):
        terms = []
        for part, direction in zip(back, directions, strict=True):
            if part is not None and direction is not None and part.requires_grad:
                terms.append((part * direction * over_rows(chosen, part, segments)).sum())
        moved: tuple[Tensor | None, ...] = (None,) * len(edges)
        if terms:
            moved = torch.autograd.grad(
                torch.stack([term.double() for term in terms]).sum(),
                cotangents,
                retain_graph=True,
                allow_unused=True,
            )
        sides.append(
            {
                edge: torch.zeros_like(like) if part is None else part
                for edge, part, like in zip(edges, moved, cotangents, strict=True)
            }
        )
    return sides[0], sides[1]


def _kind(node: Node) -> str | None:
    name = node.name().rstrip("0123456789").removesuffix("Backward")
    return name if name in _OF_ENTRIES or name in _OF_SLICES else None


def _inputs(node: Node) -> list[Place]:
    return [(parent, number) for parent, number in node.next_functions if parent is not None]


def _ones(node: Node, number: int) -> Tensor:
    """Return a cotangent of what a node computes."""
    like = node._input_metadata[number]
    return torch.ones(tuple(like.shape), dtype=like.dtype, device=like.device, requires_grad=True)


def _moved(parts: list[Tensor]) -> Tensor:
    """Return which entries changed, of inputs that are broadcast against each other."""
    found = torch.zeros((), dtype=torch.bool, device=parts[0].device)
    for part in parts:
        size = part.detach().abs()
        bound = _TOLERANCE * size.max() if size.numel() else 0.0
        found = found | ((size > bound) & size.isfinite())
    return found


def _dims(node: Node) -> tuple[int, ...]:
    """Return the dims that a node chooses along; none for all."""
    dims = getattr(node, "_saved_dim", None)
    listed = (dims,) if isinstance(dims, int) else tuple(dims or ())
    # They are kept without their sign.
    return tuple(dim - 2**64 if dim >= 2**63 else dim for dim in listed)


def _any(found: Tensor, dims: tuple[int, ...]) -> Tensor:
    if not dims or not found.ndim:
        return found.any()
    for dim in sorted((d % found.ndim for d in dims), reverse=True):
        found = found.any(dim)
    return found


def halves(samples: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """Return which of (B,) samples are in a random half, and the generator that chose them."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.zeros(samples, dtype=torch.bool)
    half[torch.randperm(samples, generator=generator)[: (samples + 1) // 2]] = True
    return half, generator
