"""The hooks that follow a model's calls, on the model in observed steps only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adaptmix.probe._coverage import Layer
from adaptmix.probe._functions import Functions
from adaptmix.probe._tracked import UNKNOWN, Listener


class ModelHooks:
    """Hooks before and after every module's forward.

    Calls of layers on samples are told as such; whatever else happens in a forward, the outermost
    module's ``Functions`` sees.

    Args:
        layers: of the model.
        functions: that see its operations.
        listener: what is told of layers' calls.
    """

    def __init__(self, layers: Iterable[Layer], functions: Functions, listener: Listener) -> None:
        self._functions, self._listener = functions, listener
        self._layers = {id(layer.module): layer for layer in layers}
        self._closed: frozenset[int] = frozenset()
        self._attributes: dict[int, int] = {}
        self._handles: list[RemovableHandle] = []
        self._calls: list[tuple[nn.Module, tuple[int, ...], int | None]] = []

    def install(self, modules: Sequence[nn.Module]) -> None:
        """Put the hooks on all modules of the model."""
        self._functions.tracker.buffers = frozenset(
            [id(buffer) for module in modules for buffer in module._buffers.values()]
        )
        attributes = {key: len(vars(layer.module)) for key, layer in self._layers.items()}
        if attributes != self._attributes:
            self._attributes = attributes
            own = (layer for layer in self._layers.values() if _is_closed(layer))
            self._closed = frozenset(id(layer.module) for layer in own)
        enter, leave = _Hook(self._enter), _Hook(self._leave)
        for module in modules:
            # First in line, so that the output is the layer's own whatever other hooks return.
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(
                    leave, prepend=True, with_kwargs=True, always_call=True
                ),
            ]

    def remove(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        functions = self._functions
        if not self._calls:
            functions.tracker.samples = _rows((*args, *kwargs.values()))
            functions.__enter__()  # type: ignore[no-untyped-call]
        before = functions.tracker.attention
        claimed: tuple[int, ...] = ()
        if id(module) in self._layers:
            x = _first((*args, *kwargs.values()) if kwargs else args)
            with torch._C.DisableTorchFunction():  # nothing here is part of the forward
                known = x is not None and functions.rows(x) is not None
            if known:
                own = module._parameters.values()
                claimed = tuple([id(parameter) for parameter in own if parameter is not None])
                functions.claimed.update(claimed)
                functions.closed = id(module) in self._closed
        elif isinstance(module, nn.MultiheadAttention):
            query = args[0] if args else kwargs["query"]
            batched = query.ndim == 3
            samples = query.shape[0 if module.batch_first else 1] if batched else UNKNOWN
            functions.tracker.attention = samples
        self._calls.append((module, claimed, before))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        functions = self._functions
        _, claimed, functions.tracker.attention = self._calls.pop()
        if claimed:
            functions.claimed.difference_update(claimed)
            functions.closed = False
        if not self._calls:
            functions.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if not claimed or output is None:  # a forward that was broken off
            return
        layer = self._layers[id(module)]
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with torch._C.DisableTorchFunction():  # nothing here is part of the forward
            rows = functions.rows(inputs[0])
            if isinstance(output, Tensor) and rows is not None:
                functions.tracker.keep(inputs[0], output, rows)
                self._listener.on_call(layer, inputs, output, rows)
            else:
                self._listener.refuse(tuple(layer.indices.values()))


def _is_closed(layer: Layer) -> bool:
    """Return whether all that happens inside of a layer is what its rule says."""
    module, rule = layer.module, layer.rule
    own = rule.factored is not None or rule.normalises
    # Weights that are made of other parameters are attributes.
    made = any(isinstance(value, Tensor) for value in vars(module).values())
    return own and not module._modules and not made


def _first(values: Iterable[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)


def _rows(values: Iterable[Any]) -> int | None:
    """Return the first dim of the first tensor among a call's arguments."""
    for value in values:
        if isinstance(value, Tensor):
            if value.ndim:
                return value.shape[0]
        elif hasattr(value, "values"):
            found = _rows(value.values())
            if found is not None:
                return found
        elif isinstance(value, (tuple, list)):
            found = _rows(value)
            if found is not None:
                return found
    return None


class _Hook:
    """A hook that copies of its module, as averages of weights make, do without."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *call: Any) -> None:
        self._function(*call)

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_: Any) -> None:
    pass
