"""A walk through autograd's graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import Node


def nodes_of(tensors: Iterable[Tensor], *, stop: Collection[Node] = ()) -> Iterator[Node]:
    """Yield each node that tensors are computed by once, without ``stop`` and what is above it."""
    pending: list[Node | None] = [tensor.grad_fn for tensor in tensors]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen or node in stop:
            continue
        seen.add(node)
        yield node
        pending += [parent for parent, _ in node.next_functions]
