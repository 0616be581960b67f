"""The tensors that a loss is made of, found in its graph, and factors on their rows' gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from adaptmix.data import Segments

# They pass a tensor on as it is, in another precision or copy.
_TRANSPARENT = frozenset({"ToCopyBackward0", "CloneBackward0", "AliasBackward0"})
# What DistributedDataParallel puts behind all outputs at once; each has its own input.
_SINK = "_DDPSinkBackward"
_LEAF = "torch::autograd::AccumulateGrad"
# Products and look-ups, which bring in the rows of a batch where an operand of theirs is data.
_PRODUCTS = (
    *("Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Addmv", "Convolution", "Embedding", "EmbeddingBag"),
    *("NativeLayerNorm", "NativeGroupNorm", "NativeBatchNorm", "Index", "IndexSelect", "Gather"),
)

_SUMS = frozenset({"Add", "Sub", "Rsub", "Stack", "Cat"})
_LINEAR = frozenset(
    {
        *("Mul", "Div", "Neg", "Sum", "Mean", "ToCopy", "Clone", "Alias", "View", "Select"),
        *("Squeeze", "Unsqueeze", "Expand", "UnsafeView", "ReshapeAlias", "Copy"),
    }
)

Place = tuple[Node, int]
"""A tensor in the graph: the node that computes it, and which of the node's outputs it is."""


@dataclass(frozen=True, eq=False)
class LossInputs:
    """Where a loss meets the model: the candidates nearest to it, and what it has beside them.

    Attributes:
        tensors: the candidates that the loss is computed from, directly.
        edges: where they are in the graph.
        uses: (node, which of its inputs, which of ``tensors`` that is) of all their uses.
        leaves: parameters that the loss depends on in other ways.
        between: nodes from the loss down to ``tensors`` and ``leaves``.
    """

    tensors: tuple[Tensor, ...]
    edges: tuple[GradientEdge, ...]
    uses: tuple[tuple[Node, int, int], ...]
    leaves: tuple[GradientEdge, ...]
    between: frozenset[Node]

    @property
    def operations(self) -> frozenset[str]:
        """Names of the kinds of nodes between the loss and its inputs."""
        return frozenset(node.name() for node in self.between)

    def scale(self, factors: Tensor, segments: Segments | None = None) -> list[int]:
        """Multiply rows' gradients at the tensors by (B,) factors, in the next backward pass.

        A tensor of k · B rows has the rows of sample j at j, B + j, 2 B + j and so on; one of
        packed rows has positions of ``segments``, or all but the last of each. The gradient is
        scaled where it leaves the tensors' users, so that hooks on the tensors themselves see it
        as the model does.

        Returns:
            A list that gets the number of a tensor each time that a use of it was scaled.
        """
        arrived: list[int] = []
        for node, place, number in self.uses:

            def hook(
                inputs: tuple[Tensor | None, ...],
                _: tuple[Tensor | None, ...],
                place: int = place,
                number: int = number,
            ) -> tuple[Tensor | None, ...]:
                gradient = inputs[place]
                if gradient is None:
                    return inputs
                arrived.append(number)
                return (*inputs[:place], _scaled(gradient, factors, segments), *inputs[place + 1 :])

            node.register_hook(hook)
        return arrived

    def above(self) -> set[Node]:
        """Return the nodes that the tensors themselves are computed by."""
        return set(_walk([(edge.node, edge.output_nr) for edge in self.edges], stop=()))

    def scaled_by_parameters(self) -> bool:
        """Return whether parameters meet the rows between the tensors and the loss.

        A learnt temperature, weight or layer there has a gradient that no factor on the tensors'
        rows reaches. What is only added to the rows' loss meets none of them.
        """
        if not self.leaves:
            return False
        rows = self._below({node for node, _, _ in self.uses})
        leaves = {(edge.node, edge.output_nr) for edge in self.leaves}
        ends = {node for node in self.between if leaves & set(node.next_functions)}
        for node in rows & self._below(ends):
            several = sum(parent is not None for parent, _ in node.next_functions) > 1
            kind = node.name().rstrip("0123456789").removesuffix("Backward")
            if not (kind in _SUMS or (kind in _LINEAR and not several) or node.name() == _SINK):
                return True
        return False

    def _below(self, nodes: set[Node]) -> set[Node]:
        """Return ``nodes`` and all that are computed from them, up to the loss."""
        users: dict[Node, list[Node]] = {}
        for node in self.between:
            for parent, _ in node.next_functions:
                if parent in self.between:
                    users.setdefault(parent, []).append(node)
        found, pending = set(nodes), list(nodes)
        while pending:
            fresh = [user for user in users.get(pending.pop(), ()) if user not in found]
            found.update(fresh)
            pending += fresh
        return found

    def overlaps(self) -> bool:
        """Return whether one of the tensors is computed from another."""
        starts = {edge.node for edge in self.edges}
        below = [parent for node in starts for parent, _ in node.next_functions if parent]
        return bool(starts & set(_walk([(node, 0) for node in below], stop=())))

    def reads_rows_elsewhere(self) -> bool:
        """Return whether parameters meet the rows of the batch other than through the tensors."""
        if not self.leaves:
            return False
        if any(node.name() != _LEAF for node in self.between & self.above()):
            return True
        ends = {(edge.node, edge.output_nr) for edge in self.edges}
        for node in self.between:
            product = node.name().rstrip("0123456789").removesuffix("Backward") in _PRODUCTS
            data = any(parent is None for parent, _ in node.next_functions)
            single = len(node.next_functions) == 1  # indices are not among a node's inputs
            if product and (data or single):
                below = _walk([(node, 0)], stop=ends)
                if any(other.name() == _LEAF for other in below):
                    return True
        return False


def find_loss_inputs(
    loss: Tensor, candidates: Iterable[Tensor], *, kept: Iterable[Tensor] = ()
) -> LossInputs:
    """Return the candidates that a loss is computed from, and what it depends on beside them.

    Args:
        loss: () with a graph.
        candidates: tensors with rows first; of two on one path the one nearer to the loss counts.
        kept: tensors that the loss may depend on in any way, such as auxiliary losses.
    """
    wanted = {place: tensor for tensor in candidates if (place := _place(tensor)) is not None}
    passed = {place for tensor in kept if (place := _place(tensor)) is not None}
    numbers: dict[Place, int] = {}
    uses: list[tuple[Node, int, int]] = []
    leaves: dict[Place, None] = {}
    between: set[Node] = set()
    start = None if loss.grad_fn is None else (loss.grad_fn, loss.output_nr)
    pending: list[Place] = [] if start is None else [start]
    seen: set[Place] = set(pending)
    while pending:
        node, output = pending.pop()
        between.add(node)
        for number, place in _parents(node, output):
            if place in wanted:
                uses.append((node, number, numbers.setdefault(place, len(numbers))))
            elif place in passed or place in seen:
                continue
            elif place[0].name() == _LEAF:
                leaves[place] = None
            else:
                pending.append(place)
            seen.add(place)
    return LossInputs(
        tensors=tuple(wanted[place] for place in numbers),
        edges=tuple(GradientEdge(*place) for place in numbers),
        uses=tuple(dict.fromkeys(uses)),
        leaves=tuple(GradientEdge(*place) for place in leaves),
        between=frozenset(between),
    )


def _place(tensor: Tensor) -> Place | None:
    """Return where a tensor was computed, before any cast or copy of it."""
    if not tensor.requires_grad:
        return None
    edge = get_gradient_edge(tensor)
    node, output = edge.node, edge.output_nr
    while node.name() in _TRANSPARENT or node.name() == _SINK:
        parent, number = node.next_functions[output if node.name() == _SINK else 0]
        if parent is None:
            break
        node, output = parent, number
    return node, output


def _parents(node: Node, output: int) -> Iterable[tuple[int, Place]]:
    for number, (parent, nr) in enumerate(node.next_functions):
        if parent is not None and (node.name() != _SINK or number == output):
            yield number, (parent, nr)


def _walk(starts: Sequence[Place], stop: Collection[Place]) -> Iterable[Node]:
    """Yield each node above ``starts`` once, not going past ``stop``."""
    pending, seen = list(starts), set(starts)
    given: set[Node] = set()
    while pending:
        node, output = pending.pop()
        if node not in given:
            given.add(node)
            yield node
        for _, place in _parents(node, output):
            if place not in seen and place not in stop:
                seen.add(place)
                pending.append(place)


def over_rows(values: Tensor, like: Tensor, segments: Segments | None = None) -> Tensor:
    """Return (B,) values of rows as they are along the first dims of a tensor, to multiply it by.

    Args:
        values: of each row.
        like: of k · B rows, of row j at j, B + j and so on; or of the positions of packed rows.
        segments: where rows are packed; None where they are not.
    """
    if segments is None:
        values = values.to(like.device, non_blocking=True).repeat(len(like) // len(values))
    else:
        values = segments.spread(values.to(like.device, non_blocking=True), like.shape[1])
    return values.reshape(*values.shape, *(1,) * (like.ndim - values.ndim))


@torch.no_grad()
def _scaled(gradient: Tensor, factors: Tensor, segments: Segments | None) -> Tensor:
    return gradient * over_rows(factors.to(gradient.dtype), gradient, segments)
