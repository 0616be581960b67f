"""Parameters that are used by functions, which no layer's hook sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from adaptmix.probe._by_function import embedding, experts, looked_up, matrix
from adaptmix.probe._coverage import Layer, ParameterMap
from adaptmix.probe._operations import (
    UNGUARDED_ATTENTION,
    PerSample,
    by_running_again,
    depends_on_batch,
    embedding_options,
    normalises_the_batch,
    of_factor,
    of_term,
    reduced_is_right,
)
from adaptmix.probe._pauses import Pauses
from adaptmix.probe._rows import EXPANDING, RowTracker
from adaptmix.probe._tracked import (
    ONE_EACH,
    Listener,
    Rows,
    Source,
    Use,
    second_first,
    tensors_of,
)
from adaptmix.probe.rules._registry import HEADS

_MATRIX = frozenset({"linear", "matmul", "mm", "addmm", "embedding"})
_GROUPED = frozenset({"grouped_mm", "_grouped_mm"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_TERMS = frozenset({"add", "sub", "add_", "sub_", "__iadd__", "__isub__"})
_NO_TENSORS = frozenset({torch.Size, torch.dtype, torch.device, bool, int, float, type(None)})
_IN_PLACE_PRODUCTS = frozenset({"mul_", "div_", "__imul__", "__itruediv__"})


@dataclass(eq=False)
class Functions(TorchFunctionMode):
    """Sees every operation of a model's forward that takes parameters, or what is made of them.

    Tensors made of parameters alone (a slice, 1 + weight, a normalised weight, embedded positions)
    have no samples. The operation that brings one together with the samples is where the gradients
    of samples with respect to it are read; those of parameters follow by differentiating it.

    Args:
        parameters: the model's.
        listener: what is told.
        tracker: knows how tensors run over samples.
        pauses: when something else than the model runs.
        claimed: identities of the parameters of layers that are being called.
    """

    parameters: ParameterMap
    listener: Listener
    tracker: RowTracker
    pauses: Pauses
    claimed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.closed = False  # while a layer runs in which there is nothing else to see
        self._sources: dict[int, Source] = {}
        self._heads: set[Any] = set()

    def forget(self) -> None:
        """Forget the tensors of a micro-batch."""
        self.tracker.forget()
        self._sources.clear()
        self._heads.clear()
        self.claimed.clear()
        self.closed = False

    def rows(self, tensor: Tensor) -> Rows | None:
        """Return how a tensor runs over samples; None where it has none, as far as is known."""
        return None if id(tensor) in self._sources else self.tracker.rows(tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at it."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:  # it is written in terms of operations that are to be seen
                return UNGUARDED_ATTENTION(*args, **kwargs)
        output = func(*args, **kwargs)
        if self.closed or self.pauses.steps or type(output) in _NO_TENSORS:
            return output
        if isinstance(output, Tensor):
            self._see(func, args, kwargs, [output])
        elif isinstance(output, (tuple, list)):
            outputs = [o for o in output if isinstance(o, Tensor)]
            if outputs:
                self._see(func, args, kwargs, outputs)
        return output

    def _see(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        name = getattr(func, "__name__", "")
        tensors = tensors_of((*args, *kwargs.values()) if kwargs else args)
        if not tensors:
            self.tracker.made(name, outputs)
            return
        own = {id(t): source for t in tensors if (source := self._source(t)) is not None}
        if HEADS:
            for tensor in tensors:
                if type(tensor.grad_fn).__name__ in HEADS:
                    self._head(tensor)
        if not own:
            self.tracker.mark(name, tensors, args, outputs)
            return
        others = [t for t in tensors if id(t) not in own and id(t) not in self.claimed]
        batch = {id(t): rows for t in others if (rows := self.rows(t)) is not None}
        sources = list(own.values())
        if not batch and any(t.requires_grad for t in others):
            self._lose(sources)
        elif batch or self.tracker.expands(name, tensors[0], outputs[0]):
            self.tracker.mark(name, others, args, outputs)
            inputs = [t for t in others if id(t) in batch]
            if not inputs and self.tracker.stacks(name, tensors[0], outputs[0]):
                self.tracker.note(outputs[0], Rows(len(tensors[0])))
            self._cross(func, name, args, kwargs, own, inputs, outputs)
        else:
            leaves = {i: leaf for source in sources for i, leaf in source.leaves.items()}
            options = looked_up(args, kwargs, sources) if name == "embedding" else None
            for output in outputs:
                if output.is_floating_point() and id(output) not in own:
                    self._sources[id(output)] = Source(output, leaves, options)

    def _source(self, tensor: Tensor) -> Source | None:
        source = self._sources.get(id(tensor))
        if source is not None or not tensor.is_leaf or not isinstance(tensor, nn.Parameter):
            return source
        number = self.parameters.number(tensor)
        if number is None or id(tensor) in self.claimed:
            return None
        return Source(tensor, {number: tensor})

    def _cross(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        own: Mapping[int, Source],
        inputs: Sequence[Tensor],
        outputs: list[Tensor],
    ) -> None:
        """Tell of an operation that brings parameters together with samples."""
        output, sources = outputs[0], list(own.values())
        if name in _RECURRENT:
            self._recur(func, args, sources, outputs)
            return
        expansion = self.tracker.of_expansion(name, sources[0].tensor, output)
        rows = self.rows(inputs[0]) if inputs else expansion
        single = len(outputs) == 1 and name not in _IN_PLACE_PRODUCTS
        if rows is None or not single or normalises_the_batch(name, args, kwargs):
            self._lose(sources)
            return
        left = dict(own)
        if name in _TERMS:
            self._places(name, args, kwargs, left, inputs, output, rows)
        elif name in _GROUPED:
            self._experts(args, kwargs, left, output, rows)
        elif name in _MATRIX:
            self._layer(name, args, kwargs, left, output, rows)
        uses = []
        for identity, source in left.items():
            per_sample = self._gradients(func, name, args, kwargs, source, identity, output)
            if per_sample is None:
                self._lose([source])
            else:
                uses.append(Use((source,), per_sample))
        if uses:
            self.listener.on_operation(uses, inputs, output, rows)

    def _places(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        left: dict[int, Source],
        inputs: Sequence[Tensor],
        output: Tensor,
        rows: Rows,
    ) -> None:
        """Tell of embeddings of the same places that are added to every row, as of a layer."""
        for identity, source in list(left.items()):
            options, shape, row = source.looked_up, source.tensor.shape, output.shape[1:]
            if options is None or rows.arrange is not None or not row:
                continue
            if kwargs or "sub" in name or shape[-len(row) :] != row or shape.numel() != row.numel():
                continue
            ((index, parameter),) = source.leaves.items()
            layer = embedding(parameter, index, options.get("padding_idx"))
            each = options["input"].reshape(row[:-1]).expand(output.shape[:-1])
            self.listener.on_call(layer, [each, *inputs], output, rows)
            del left[identity]

    def _recur(
        self, func: Any, args: Any, sources: Sequence[Source], outputs: Sequence[Tensor]
    ) -> None:
        """Tell of a recurrent network, which has samples first in its input and output."""
        x, states = args[0], args[1]
        states = states if isinstance(states, (tuple, list)) else [states]
        *_, layers, dropout, training, _, batch_first = args
        random = dropout and training and layers > 1
        if x.ndim != 3 or self.rows(x) is not ONE_EACH or not batch_first or random:
            self._lose(sources)
            return
        samples = {id(x): (0, 1)} | {id(state): (1, 1) for state in states}
        own = [source.tensor for source in sources]
        for i, output in enumerate(outputs):
            per_sample = by_running_again(func, args, {}, sources=own, samples=samples, output=i)
            rows = Rows(arrange=second_first) if i else ONE_EACH
            self.listener.on_operation([Use(tuple(sources), per_sample)], [x], output, rows)

    def _experts(
        self, args: Any, kwargs: Any, left: dict[int, Source], output: Tensor, rows: Rows
    ) -> None:
        """Tell of rows that are multiplied by one of several stacked weights each."""
        x, weight = args[0], args[1]
        source = left.get(id(weight))
        if source is None or rows.ids is None:
            return
        layer = experts(args, kwargs, source)
        if layer is not None:
            del left[id(weight)]
            self.listener.on_call(layer, [x], output, rows)

    def _head(self, output: Tensor) -> None:
        """Tell of a head that is fused with the loss, given the function's first output."""
        node: Any = output.grad_fn
        if node in self._heads or output.output_nr:
            return
        self._heads.add(node)
        head = HEADS[type(node).__name__](node)
        named = {"weight": head.module.weight, "bias": head.module.bias}
        own = {k: self._source(t) for k, t in named.items() if t is not None}
        indices = {k: next(iter(s.leaves)) for k, s in own.items() if s is not None}
        rows = self.rows(head.hidden)
        if not indices:
            return
        if rows is None:
            self.listener.refuse([*indices.values()])
            return
        head.module.x = rows.first(head.x)
        layer = Layer(head.module, head.rule, indices)
        self.listener.on_call(layer, [head.x, head.hidden], output, rows)
        node.register_prehook(partial(self._check_head, [*indices.values()]))

    def _check_head(self, indices: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
        if any(gradient is not None for gradient in gradients[1:]):
            self.listener.refuse(indices)

    def _layer(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        left: dict[int, Source],
        output: Tensor,
        rows: Rows,
    ) -> None:
        """Tell of a layer that is called by function, and take its weight from what is left."""
        if name == "addmm":
            args = args[1:]
        x, weight = args[0], args[1] if len(args) > 1 else kwargs.get("weight", kwargs.get("other"))
        source = left.get(id(weight)) if isinstance(weight, Tensor) else None
        found = None if source is None or id(x) in left else matrix(name, args, kwargs, source)
        if found is not None:
            del left[id(weight)]
            self.listener.on_call(found[0], [x], output, rows, found[1])

    def _gradients(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        source: Source,
        identity: int,
        output: Tensor,
    ) -> PerSample | None:
        """Return the gradients of samples with respect to one of an operation's arguments."""
        shape = source.tensor.shape
        apart = name in _TERMS or name in EXPANDING or name == "mul"
        if apart and output.ndim == len(shape) and shape[0] == len(output) > 1:
            return None  # it has rows of its own, as of places that every row has others of
        where = [id(arg) == identity for arg in args]
        if name in _TERMS:
            sign = -1.0 if "sub" in name and where.index(True) == 1 else 1.0
            if name == "__rsub__":
                sign = -sign
            return None if kwargs.get("alpha", 1) != 1 else of_term(shape, sign)
        if name in EXPANDING:
            stacked = self.tracker.stacks(name, source.tensor, output)
            fits = stacked or name != "repeat" or reduced_is_right(shape, args)
            return of_term(shape) if fits else None
        if name == "mul" and len(args) == 2:
            other = args[0] if where[1] else args[1]
            if isinstance(other, Tensor) and len(other) == len(output):
                return of_factor(shape, other)
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        if (name == "linear" and id(bias) == identity) or (name == "addmm" and where[0]):
            return of_term(shape)
        if self.tracker.attention is not None or (
            name == "embedding" and depends_on_batch(embedding_options(args, kwargs))
        ):
            return None
        samples = {
            id(t): (0, rows.each)
            for t in tensors_of((*args, *kwargs.values()))
            if id(t) != identity and (rows := self.rows(t)) is not None and rows.ids is None
        }
        return by_running_again(func, args, kwargs, sources=[source.tensor], samples=samples)

    def _lose(self, sources: Sequence[Source]) -> None:
        # Nothing is differentiated through what runs without a graph, such as the inside of an
        # autograd function. Whether the function's own gradients are read is proven apart.
        if not torch.is_grad_enabled():
            return
        self.listener.refuse([index for source in sources for index in source.leaves])
