"""One micro-batch: what its forward calls, and what every estimator does with its backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from adaptmix.data._segments import Segments
from adaptmix.probe._coverage import Layer, ParameterMap
from adaptmix.probe._tracked import ONE_EACH, Rows
from adaptmix.probe.estimators._gradients import GradientSums, align

# Up to so many domains, sums of products of vectors cost less than the products themselves.
FEW_DOMAINS = 32

Kind = tuple[tuple[int, ...], int, bool, bool]
"""What a call is taken for: its parameters, rows of each sample, whether they are in an order of
their own, and whether another dim is theirs."""


class MicroBatch(ABC):
    """One micro-batch: the layer calls of its forward, and the gradients of its backward.

    Args:
        parameters: the model's parameters.
        num_domains: K.
    """

    def __init__(self, parameters: ParameterMap, num_domains: int) -> None:
        self.uses: Counter[int] = Counter()  # layer calls by parameter
        self.calls: dict[Node, list[Node]] = {}  # graph nodes of layer inputs by that of the output
        self.first: list[tuple[GradientEdge, torch.Size]] = []  # outputs of the first calls
        self.sizes: Counter[int] = Counter()  # first dims of the calls' inputs
        self.rows = 0  # that the model's outermost call is of
        self.kinds: set[Kind] = set()  # of its calls
        self.operations: set[str] = set()  # between its calls, by their nodes' names
        self.precision = torch.float64  # the coarsest that a call computes in
        self._parameters = parameters
        self._num_domains = num_domains
        self._scale: Tensor | None = None
        self._accumulates: Node | None = None
        self._active = False
        self._arrived = False  # whether a gradient did
        self.twice = False  # whether its gradients may be differentiated again
        self._segments: Segments | None = None

    def expect(
        self,
        domains: Tensor,
        factors: Tensor,
        segments: Segments | None = None,
        samples: Tensor | None = None,
        accumulates: Node | None = None,
    ) -> None:
        """Fix the samples.

        Args:
            domains: (B,) theirs.
            factors: (B,) in the loss.
            segments: their places, when they are packed.
            samples: (R,) the sample that each row inside the model is of, when there are others.
            accumulates: a node that runs in the backward passes that count.
        """
        self._domains = domains
        self._accumulates = accumulates
        self._segments = segments
        self._samples = samples
        # The numbers of rows that are told apart: that of samples, and that inside the model.
        self._row_numbers = {len(domains)} if samples is None else {len(domains), len(samples)}
        self._factors = factors.detach().double()
        self._kept = self._factors != 0.0
        self._square = torch.zeros_like(self._factors)

    def note(self, kind: Kind, dtype: torch.dtype) -> None:
        """Note what a call is taken for, and what it computes in."""
        self.kinds.add(kind)
        if dtype is self.precision or not dtype.is_floating_point:
            return
        if torch.finfo(dtype).eps > torch.finfo(self.precision).eps:
            self.precision = dtype

    @contextmanager
    def rehearsal(
        self,
        domains: Tensor,
        factors: Tensor,
        samples: Tensor | None,
        segments: Segments | None = None,
    ) -> Iterator[dict[int, Tensor]]:
        """Read a backward pass that is not the step's, of rows' gradients times factors.

        Yields what gets, afterwards, the (K, …) sums by domain of each parameter that was read.
        """
        self.expect(domains, factors, segments, samples)
        self._scale, self._active = 1.0 / self._factors, True
        sums: dict[int, Tensor] = {}
        try:
            yield sums
            sums.update(self._parts())
        finally:
            self._active = False
            self._restart()
            self._scale = None

    @abstractmethod
    def image(self, index: int, gradient: Tensor) -> Tensor:
        """Return the (…) image of a parameter's gradient, as sums hold it."""

    def begin(self, upstream: Tensor) -> None:
        """Start a backward pass, given the gradient () that arrives at the loss.

        The last one that accumulates gradients counts. Others, of ``torch.autograd.grad``, may
        come before it and after it.
        """
        self._active = self._accumulates is None or _runs(self._accumulates)
        if not self._active:
            return
        if self._scale is not None:
            self._restart()
        # What is differentiated afterwards, such as a penalty on gradients, is something else.
        torch.autograd.Variable._execution_engine.queue_callback(self._end)
        inverse = 1.0 / (upstream.detach().double() * self._factors)
        self._scale = torch.where(self._kept, inverse, 0.0)

    @abstractmethod
    def keep(self, layer: Layer, x: Tensor) -> Tensor | None:
        """Return what the backward pass needs of a layer's input."""

    def add(
        self,
        layer: Layer,
        size: int,
        kept: Tensor | None,
        gradient: Tensor,
        rows: Rows = ONE_EACH,
    ) -> None:
        """Add what one call of ``layer`` contributes.

        Args:
            layer: the layer.
            size: the first dim of its input, 0 of a scalar.
            kept: what ``keep`` returned.
            gradient: of its output.
            rows: how its input runs over the rows inside the model.
        """
        if self._scale is None or not self._active:  # the gradient is that of another loss
            return
        self._arrived = True
        indices = layer.indices.values()
        if self._parameters.refused_all(indices):
            return
        if self._segments is not None and rows.ids is not None:
            samples = rows.packed_in(self._segments)
            if samples is not None:
                known = (samples >= 0).reshape(-1, *[1] * (gradient.ndim - 1))
                self._add(layer, kept, torch.where(known, gradient, 0), samples.clamp(min=0))
                return
        elif rows.ids is not None or self._holds_samples(layer, size, gradient):
            self._add(layer, kept, gradient, self._samples_of(size, rows.ids))
            return
        self._parameters.refuse(indices)

    def add_whole(self, index: int, gradients: Tensor, ids: Tensor | None) -> None:
        """Add whole gradients that one use of a parameter contributes.

        Args:
            index: number of the parameter.
            gradients: (rows, *shape).
            ids: as for ``add``.
        """
        if self._scale is None or not self._active:
            return
        self._arrived = True
        if self._parameters.refused(index):
            return
        size = len(gradients)
        if self._segments is not None or (ids is None and size not in self._row_numbers):
            self._parameters.refuse([index])
            return
        self._parameters.check_shape(index, gradients)
        gradients = gradients.to(self._parameters.dtypes[index])
        self._add_whole(index, gradients, self._samples_of(size, ids))

    @abstractmethod
    def _add_whole(self, index: int, gradients: Tensor, samples: Tensor | None) -> None:
        """Add the (rows, *shape) gradients of a parameter."""

    def _samples_of(self, size: int, ids: Tensor | None) -> Tensor | None:
        """Return the sample of each of so many rows; None where they are the samples."""
        if self._samples is None:
            return ids
        inside = size if ids is None else self.rows
        if inside != len(self._samples):
            return ids
        return self._samples if ids is None else self._samples[ids]

    def _holds_samples(self, layer: Layer, size: int, gradient: Tensor) -> bool:
        """Return whether the samples, packed or not, are what a call's input and output are of."""
        if self._segments is None:
            same = gradient.ndim > 0 and size == gradient.shape[0]
            return same and size in self._row_numbers
        if not layer.rule.packs(gradient.ndim) or size != gradient.shape[0]:
            return False
        short = int(layer.rule.predicts and gradient.shape[1] + 1 == self._segments.shape[1])
        return (size, gradient.shape[1] + short) == self._segments.shape

    def _summed(self, values: Tensor, samples: Tensor | None) -> Tensor:
        """Return (B, …) sums of (R, …) values over the rows of each sample."""
        if samples is None:
            return values
        sums = values.new_zeros(len(self._domains), *values.shape[1:])
        return sums.index_add_(0, samples, values)

    def _by_sample(self, values: Tensor, samples: Tensor | None) -> Tensor:
        """Return (B, …) values of samples that may be packed, or (R, …) ones as they are."""
        if self._segments is None or samples is not None:
            return values
        return self._segments.unpack(self._segments.completed(values))

    @abstractmethod
    def _add(
        self, layer: Layer, kept: Tensor | None, gradient: Tensor, samples: Tensor | None
    ) -> None:
        """Add a call whose input and output hold the samples, or the rows of ``samples``."""

    def _end(self) -> None:
        self._active = False

    def _restart(self) -> None:
        """Forget the gradients of an earlier backward pass."""
        self._arrived = False
        self._square.zero_()

    @abstractmethod
    def _parts(self) -> dict[int, Tensor]:
        """Return the (K, …) sums by domain of parameters, having filled ``_square``."""

    @abstractmethod
    def _joined(self, parts: Mapping[int, Tensor]) -> list[Tensor]:
        """Return ``GradientSums.vectors``, with zeros for parameters that are not among parts."""

    def finish(self) -> GradientSums | None:
        """Return the sums, or None when no gradient arrived.

        The layers of a sample arrive one by one and are summed before it is known whether all of
        them are finite, so a micro-batch in which any gradient is not finite counts nothing. The
        optimizer step it belongs to is spoilt by the same gradient.
        """
        if not self._arrived:
            return None
        parts = self._parts()
        self._parameters.see(parts)
        vectors = self._joined(parts)
        broken = ~self._square.isfinite().all()
        if self.twice:
            self._square, self._kept = self._square * 0.0, self._kept & False
            vectors = [vector * 0.0 for vector in vectors]
        kept = self._kept.double()
        empty = self._square.new_zeros(self._num_domains)
        count = empty.index_add(0, self._domains, kept)
        square = empty.index_add(0, self._domains, self._square)
        return GradientSums(
            count=count.masked_fill_(broken, 0.0),
            square=square.masked_fill_(broken, 0.0),
            vectors=[vector.masked_fill_(broken, 0.0) for vector in vectors],
            skipped=kept.sum() * broken,
            mass=empty.new_zeros(2),
        )

    def _few_products(self, index: int, samples: Tensor | None) -> bool:
        """Return whether gradients may be summed by ``products``: one use, of one row a sample."""
        few = self.uses[index] <= 1 and self._num_domains <= FEW_DOMAINS
        return few and samples is None

    def _where(self, values: Tensor, samples: Tensor | None = None) -> Tensor:
        """Return (B, …) values, or (R, …), with zeros for the samples that are left out.

        Where, not times: a sample that is left out may have overflowed.
        """
        kept = self._kept if samples is None else self._kept[samples]
        return torch.where(align(kept, values), values, 0)


def _runs(node: Node) -> bool:
    """Return whether the backward pass that is running runs a node that accumulates a gradient."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # torch.autograd.grad, with respect to the very tensor
        return False
