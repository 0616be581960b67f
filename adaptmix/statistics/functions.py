"""Parameters that are used by functions, which no layer's hook sees."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from adaptmix.statistics.coverage import Layer, ParameterMap
from adaptmix.statistics.layers import Experts, Lookup, Matrix
from adaptmix.statistics.operations import PerSample, by_running_again, of_factor, of_term
from adaptmix.statistics.rules import HEADS

Arrange = Callable[[Tensor], Tensor]
"""Puts the samples first: (n, …), or (rows, …) of rows whose samples are told apart."""

# Operations whose first dim is another one than that of their input.
_TURNING = frozenset({"transpose", "permute", "t", "movedim", "swapaxes", "swapdims", "moveaxis"})
_RESHAPING = frozenset({"view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze"})
_PICKING = frozenset({"__getitem__", "index_select"})
_EXPANDING = frozenset({"expand", "expand_as", "broadcast_to", "repeat"})
_MATRIX = frozenset({"linear", "matmul", "mm", "addmm", "embedding"})
_GROUPED = frozenset({"grouped_mm", "_grouped_mm"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_IN_PLACE_PRODUCTS = frozenset({"mul_", "div_", "__imul__", "__itruediv__"})

_EMBEDDING = (
    *("input", "weight", "padding_idx", "max_norm", "norm_type"),
    *("scale_grad_by_freq", "sparse"),
)


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor that is made of parameters alone.

    Args:
        tensor: it.
        leaves: {number: parameter} that it is made of.
    """

    tensor: Tensor
    leaves: Mapping[int, Tensor]

    def pulled_back(self, gradients: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (number, (n, *shape) gradients) of the parameters, given those of the tensor."""
        if self.tensor.grad_fn is None:
            yield next(iter(self.leaves)), gradients
            return
        leaves = list(self.leaves.values())
        found = [
            torch.autograd.grad(
                self.tensor,
                leaves,
                gradient.to(self.tensor.dtype),
                retain_graph=True,
                materialize_grads=True,
            )
            for gradient in gradients
        ]
        for index, *parts in zip(self.leaves, *found, strict=True):
            yield index, torch.stack(parts)


@dataclass(frozen=True, eq=False)
class Use:
    """What one operation took of parameters, and the gradients of samples with respect to it."""

    sources: tuple[Source, ...]
    per_sample: PerSample

    def gradients(self, gradient: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (number, (n, *shape) gradients) of parameters, given that of the output."""
        for source, found in zip(self.sources, self.per_sample(gradient), strict=True):
            yield from source.pulled_back(found)


class Listener(Protocol):
    """What is told of calls."""

    def on_call(
        self,
        layer: Layer,
        inputs: Sequence[Tensor],
        output: Tensor,
        rows: Rows,
        pad: Padding = ...,
    ) -> None:
        """Take in a call of a layer."""

    def on_operation(
        self, uses: Sequence[Use], inputs: Sequence[Tensor], output: Tensor, rows: Rows
    ) -> None:
        """Take in an operation."""

    def refuse(self, indices: Sequence[int]) -> None:
        """Leave out parameters whose use cannot be followed."""


@dataclass(frozen=True, eq=False)
class Rows:
    """How the first dim of a tensor runs over samples.

    Args:
        each: rows of each sample, one sample after the other.
        ids: (rows,) the sample of each row, where they are in no such order.
        arrange: puts samples first where positions are, in PyTorch's attention.
    """

    each: int = 1
    ids: Tensor | None = None
    arrange: Arrange | None = None

    def first(self, values: Tensor) -> Tensor:
        """Return (n, …) values of tensors of such rows, or (rows, …) with ``ids``."""
        if self.arrange is not None:
            return self.arrange(values)
        if self.ids is not None or self.each == 1:
            return values
        return values.reshape(-1, self.each, *values.shape[1:])

    def picked(self, where: Tensor, samples: int) -> Rows:
        """Return the rows that an index, or a mask, picks."""
        device = where.device
        ids = self.ids
        if ids is None:
            ids = torch.arange(samples, device=device).repeat_interleave(self.each)
        if where.dtype == torch.bool:
            ids = ids.reshape(-1, *[1] * (where.ndim - 1)).expand(where.shape)
        return Rows(ids=ids[where])


ONE_EACH = Rows()
UNKNOWN = -1  # samples, of an attention over inputs without a dim of them


@dataclass(frozen=True)
class Padding:
    """Where the rows of a weight that a call uses are among all of its rows."""

    before: int = 0
    after: int = 0
    of_inputs: bool = False

    def inputs(self, values: Tensor) -> Tensor:
        """Return features of inputs with zeros where the weight has rows that are not used."""
        return self._padded(values) if self.of_inputs else values

    def outputs(self, values: Tensor) -> Tensor:
        """Return features of outputs with zeros where the weight has rows that are not used."""
        return values if self.of_inputs else self._padded(values)

    def _padded(self, values: Tensor) -> Tensor:
        if not self.before and not self.after:
            return values
        return functional.pad(values, (self.before, self.after))


WHOLE = Padding()


class _Marks:
    """Notes on tensors that do not keep them alive."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[weakref.ref[Tensor], Rows]] = {}

    def get(self, tensor: Tensor) -> Rows | None:
        note = self._notes.get(id(tensor))
        return note[1] if note is not None and note[0]() is tensor else None

    def set(self, tensor: Tensor, rows: Rows) -> None:
        self._notes[id(tensor)] = (weakref.ref(tensor), rows)

    def clear(self) -> None:
        self._notes.clear()


@dataclass(eq=False)
class Functions(TorchFunctionMode):
    """Sees every operation of a model's forward that takes parameters, or what is made of them.

    Tensors made of parameters alone (a slice, 1 + weight, a normalised weight, embedded positions)
    have no samples. The operation that brings one together with the samples is where the gradients
    of samples with respect to it are read; those of parameters follow by differentiating it.

    Args:
        parameters: the model's.
        listener: what is told.
        samples: n, the first dim of what the outermost module was called with.
        attention: number of samples inside PyTorch's attention, where positions come first.
        claimed: identities of the parameters of layers that are being called.
    """

    parameters: ParameterMap
    listener: Listener
    samples: int | None = None
    attention: int | None = None
    claimed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self._marks = _Marks()
        self._sources: dict[int, Source] = {}
        self._heads: set[Any] = set()

    def forget(self) -> None:
        """Forget the tensors of a micro-batch."""
        self._marks.clear()
        self._sources.clear()
        self._heads.clear()
        self.claimed.clear()

    def rows(self, tensor: Tensor) -> Rows | None:
        """Return how a tensor runs over samples; None where it has none, as far as is known."""
        if self._sources.get(id(tensor)) is not None:
            return None
        if self.attention == UNKNOWN:
            return None
        if self.attention is not None:
            return Rows(arrange=partial(_samples_first, self.attention))
        known = self._marks.get(tensor)
        if known is None and tensor.ndim and len(tensor) == self.samples:
            known = ONE_EACH
        return known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at it."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:  # it is written in terms of operations that are to be seen
                return _UNGUARDED_ATTENTION(*args, **kwargs)
        output = func(*args, **kwargs)
        if isinstance(output, Tensor):
            self._see(func, args, kwargs, [output])
        elif isinstance(output, (tuple, list)) and any(isinstance(o, Tensor) for o in output):
            self._see(func, args, kwargs, [o for o in output if isinstance(o, Tensor)])
        return output

    def _see(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        tensors = list(_tensors((*args, *kwargs.values())))
        found = [(t, self._source(t)) for t in tensors]
        own = {id(t): source for t, source in found if source is not None}
        name = getattr(func, "__name__", "")
        if HEADS:
            for tensor in tensors:
                if type(tensor.grad_fn).__name__ in HEADS:
                    self._head(tensor)
        if not own:
            self._mark(name, tensors, args, outputs)
            return
        others = [t for t, source in found if source is None and id(t) not in self.claimed]
        batch = {id(t): rows for t in others if (rows := self.rows(t)) is not None}
        sources = list(own.values())
        if not batch and any(t.requires_grad for t in others):
            self._lose(sources)
        elif batch or self._expands(name, tensors[0], outputs[0]):
            self._mark(name, others, args, outputs)
            inputs = [t for t in others if id(t) in batch]
            if not inputs and self._stacks(name, tensors[0], outputs[0]):
                self._marks.set(outputs[0], Rows(len(tensors[0])))
            self._cross(func, name, args, kwargs, own, inputs, outputs)
        else:
            leaves = {i: leaf for source in sources for i, leaf in source.leaves.items()}
            for output in outputs:
                if output.is_floating_point() and id(output) not in own:
                    self._sources[id(output)] = Source(output, leaves)

    def _source(self, tensor: Tensor) -> Source | None:
        source = self._sources.get(id(tensor))
        if source is not None or not isinstance(tensor, nn.Parameter):
            return source
        number = self.parameters.number(tensor)
        if number is None or id(tensor) in self.claimed:
            return None
        return Source(tensor, {number: tensor})

    def _expands(self, name: str, taken: Tensor, output: Tensor) -> bool:
        """Return whether an operation gives every sample a copy of what it took."""
        return self._stacks(name, taken, output) or (
            name in _EXPANDING
            and output.ndim > 0
            and len(output) == self.samples
            and taken.shape[-output.ndim :] != output.shape
        )

    def _mark(self, name: str, tensors: Sequence[Tensor], args: Any, outputs: list[Tensor]) -> None:
        """Note how the outputs of an operation on samples run over them."""
        if not tensors or self.samples is None or name in _TURNING or name == "__get__":
            return
        if name in _PICKING:
            self._mark_picked(tensors[0], args, outputs[0])
            return
        for output in outputs:
            if not output.ndim or len(output) == self.samples:
                continue
            if name in _RESHAPING:
                rows = self.rows(tensors[0])
                whole = len(output) and len(output) % self.samples == 0
                if rows is not None and rows.ids is None and rows.arrange is None and whole:
                    self._marks.set(output, Rows(len(output) // self.samples))
                    continue
                if rows is ONE_EACH and len(output) and self.samples % len(output) == 0:
                    self._marks.set(output, ONE_EACH)  # rows of a sample side by side
                    continue
            for tensor in tensors:
                known = self._marks.get(tensor)
                if known is not None and tensor.ndim and len(tensor) == len(output):
                    self._marks.set(output, known)
                    break

    def _mark_picked(self, taken: Tensor, args: Any, output: Tensor) -> None:
        rows, samples = self.rows(taken), self.samples
        if rows is None or rows.arrange is not None or samples is None or not output.ndim:
            return
        where = args[-1]
        where = where[0] if isinstance(where, tuple) and where else where
        if isinstance(where, Tensor) and where.ndim and where.dtype != torch.uint8:
            if where.dtype == torch.bool or where.ndim == 1:
                self._marks.set(output, rows.picked(where, samples))
        elif len(output) == len(taken):
            self._marks.set(output, rows)

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
        expansion = self._rows_of_expansion(name, sources[0], output)
        rows = self.rows(inputs[0]) if inputs else expansion
        if len(outputs) != 1 or rows is None or name in _IN_PLACE_PRODUCTS:
            self._lose(sources)
            return
        left = dict(own)
        if name in _GROUPED:
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
            rows = Rows(arrange=_second_first) if i else ONE_EACH
            self.listener.on_operation([Use(tuple(sources), per_sample)], [x], output, rows)

    def _experts(
        self, args: Any, kwargs: Any, left: dict[int, Source], output: Tensor, rows: Rows
    ) -> None:
        """Tell of rows that are multiplied by one of several stacked weights each."""
        x, weight = args[0], args[1]
        source = left.get(id(weight))
        offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)
        if source is None or rows.ids is None or offsets is None or x.ndim != 2:
            return
        (index, parameter), *more = source.leaves.items()
        turned = weight is not parameter
        like = parameter.mT if turned else parameter
        if more or weight.stride() != like.stride() or weight.shape != like.shape:
            return
        places = torch.arange(len(x), device=x.device)
        experts = torch.searchsorted(offsets.long(), places, right=True)
        experts = experts.clamp(max=len(parameter) - 1)
        module = SimpleNamespace(weight=parameter, bias=None, experts=experts)
        del left[id(weight)]
        layer = Layer(module, Experts(transposed=not turned), {"weight": index})
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

    def _rows_of_expansion(self, name: str, source: Source, output: Tensor) -> Rows:
        """Return how what is repeated for every sample runs over them."""
        return Rows(len(source.tensor)) if self._stacks(name, source.tensor, output) else ONE_EACH

    def _stacks(self, name: str, taken: Tensor, output: Tensor) -> bool:
        """Return whether an operation repeats a whole tensor for every sample along its dim."""
        same = output.ndim > 0 and output.shape[1:] == taken.shape[1:]
        return name == "repeat" and same and len(output) == len(taken) * (self.samples or 0)

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
        found = None if source is None else _matrix(source, turned=name != "linear")
        if source is None or found is None or id(x) in left:
            return
        (index, parameter), pad = next(iter(source.leaves.items())), found
        if name == "embedding":
            options = _options(args, kwargs)
            if pad != Padding(of_inputs=True) or parameter.ndim != 2 or _depends(options):
                return
            padding_idx = options.get("padding_idx")
            module = SimpleNamespace(
                weight=parameter,
                bias=None,
                padding_idx=padding_idx,
                num_embeddings=parameter.shape[0],
                embedding_dim=parameter.shape[1],
            )
            layer = Layer(module, Lookup(), {"weight": index})
        else:
            module = SimpleNamespace(weight=parameter, bias=None)
            layer = Layer(module, Matrix(transposed=pad.of_inputs), {"weight": index})
        del left[id(weight)]
        self.listener.on_call(layer, [x], output, rows, pad)

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
        where = [id(arg) == identity for arg in args]
        if name in ("add", "sub", "add_", "sub_", "__iadd__", "__isub__"):
            sign = -1.0 if "sub" in name and where.index(True) == 1 else 1.0
            if name == "__rsub__":
                sign = -sign
            return None if kwargs.get("alpha", 1) != 1 else of_term(shape, sign)
        if name in _EXPANDING:
            stacked = self._stacks(name, source.tensor, output)
            fits = stacked or name != "repeat" or reduced_is_right(shape, args)
            return of_term(shape) if fits else None
        if name == "mul" and len(args) == 2:
            other = args[0] if where[1] else args[1]
            if isinstance(other, Tensor) and len(other) == len(output):
                return of_factor(shape, other)
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        if (name == "linear" and id(bias) == identity) or (name == "addmm" and where[0]):
            return of_term(shape)
        if self.attention is not None or (name == "embedding" and _depends(_options(args, kwargs))):
            return None
        samples = {
            id(t): (0, rows.each)
            for t in _tensors((*args, *kwargs.values()))
            if id(t) != identity and (rows := self.rows(t)) is not None and rows.ids is None
        }
        return by_running_again(func, args, kwargs, sources=[source.tensor], samples=samples)

    def _lose(self, sources: Sequence[Source]) -> None:
        self.listener.refuse([index for source in sources for index in source.leaves])


def _options(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(_EMBEDDING, args, strict=False)), **kwargs}


def _depends(options: Mapping[str, Any]) -> bool:
    """Return whether an embedding's gradient depends on the whole batch, or its weight changes."""
    return any(options.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse"))


def reduced_is_right(shape: torch.Size, args: Sequence[Any]) -> bool:
    """Return whether a repetition, of all dims by ``args``, repeats dims of size one only."""
    times = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    sizes = (1,) * (len(times) - len(shape)) + tuple(shape)
    return all(int(n) == 1 or size == 1 for n, size in zip(times, sizes, strict=True))


def _matrix(source: Source, *, turned: bool) -> Padding | None:
    """Return which rows of a parameter a weight is, or of its transpose; None for other weights.

    A parameter of more dims is a matrix of as many columns as its last dim has.

    Args:
        source: the weight, (out, in).
        turned: whether it is (in, out).
    """
    weight, (parameter, *more) = source.tensor, source.leaves.values()
    if more or weight.ndim != 2 or parameter.ndim < 2 or not parameter.is_contiguous():
        return None
    if weight is not parameter and weight._base is not parameter:
        return None
    columns = parameter.shape[-1]
    if weight.stride() == (columns, 1) and weight.shape[1] == columns:
        count, flipped = weight.shape[0], False
    elif weight.stride() == (1, columns) and weight.shape[0] == columns:
        count, flipped = weight.shape[1], True
    else:
        return None
    start = (weight.storage_offset() - parameter.storage_offset()) // columns
    after = parameter.numel() // columns - start - count
    return Padding(start, after, of_inputs=turned != flipped)


def _samples_first(samples: int, values: Tensor) -> Tensor:
    """Return (B, T, features) of (T, B, features) or (T · B, features)."""
    return values.reshape(-1, samples, values.shape[-1]).transpose(0, 1)


def _second_first(values: Tensor) -> Tensor:
    """Return (B, layers, …) of (layers, B, …)."""
    return values.transpose(0, 1)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (part for part in value if isinstance(part, Tensor))


def _unguarded(function: Any) -> Any:
    """Return a copy of a function of ``torch.nn.functional`` that does not ask to be overridden."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_UNGUARDED_ATTENTION = _unguarded(functional.multi_head_attention_forward)
