"""The hooks that follow calls of layers, on the model in observed steps only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adaptmix.statistics.attention import AttentionCalls, OnCall
from adaptmix.statistics.coverage import Layer


class LayerHooks:
    """Forward hooks on layers and on the attentions that use layers by function.

    Args:
        layers: to follow.
        on_call: what is told of each call.
        refuse: what is told of a layer one of whose calls cannot be followed.
    """

    def __init__(
        self, layers: Sequence[Layer], *, on_call: OnCall, refuse: Callable[[Layer], None]
    ) -> None:
        self._layers, self._on_call, self._refuse = layers, on_call, refuse
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Put the hooks on the modules."""
        attentions: dict[nn.MultiheadAttention, list[Layer]] = {}
        for layer in self._layers:
            if layer.caller is not None:
                attentions.setdefault(layer.caller, []).append(layer)
                continue
            # First in line, so that the output is the layer's own whatever other hooks return.
            hook = _Hook(partial(self._on_forward, layer))
            handle = layer.module.register_forward_hook(hook, prepend=True, with_kwargs=True)
            self._handles.append(handle)
        for attention, layers in attentions.items():
            calls = AttentionCalls(attention, layers, on_call=self._on_call, refuse=self._refuse)
            enter, leave = _Hook(calls.enter), _Hook(calls.leave)
            self._handles += [
                attention.register_forward_pre_hook(enter, with_kwargs=True),
                attention.register_forward_hook(leave, prepend=True, always_call=True),
            ]

    def remove(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_forward(self, layer: Layer, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if inputs and isinstance(output, Tensor):
            self._on_call(layer, inputs, output, None, None)
        else:
            self._refuse(layer)


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
