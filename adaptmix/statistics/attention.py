"""The projections of ``nn.MultiheadAttention``, which are functions that no layer's hook sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from adaptmix.statistics.coverage import Layer

Arrange = Callable[[Tensor], Tensor]
"""Puts the samples first, and features last: (B, ..., features)."""

OnCall = Callable[[Layer, list[Tensor], Tensor, Arrange | None, Arrange | None], None]
"""(layer, inputs, output, arranges the first input, arranges the output's gradient)."""


class AttentionCalls:
    """Reports every projection that an attention makes, as if a linear layer had been called.

    While the attention's forward runs, it finds another ``torch.nn.functional.linear``, which does
    the same and tells by the weight whose projection it is. Inside, positions come before samples,
    and ``in_proj_weight`` may be used in slices, for queries, keys and values of their own.

    Args:
        attention: the module.
        layers: its projections, as layers.
        on_call: what is told.
        refuse: what is told of the layers that take samples no batch of which is there.
    """

    def __init__(
        self,
        attention: nn.MultiheadAttention,
        layers: Iterable[Layer],
        *,
        on_call: OnCall,
        refuse: Callable[[Layer], None],
    ) -> None:
        self._attention, self._on_call, self._refuse = attention, on_call, refuse
        named = {layer.module is attention.out_proj: layer for layer in layers}
        self._into, self._out = named.get(False), named.get(True)
        self._samples = 0
        self._native: Callable[..., Tensor] | None = None

    def enter(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Listen from here on: a forward pre-hook of the attention."""
        query = args[0] if args else kwargs["query"]
        if query.ndim != 3:
            for layer in filter(None, (self._into, self._out)):
                self._refuse(layer)
            return
        self._samples = query.shape[0 if self._attention.batch_first else 1]
        self._native = functional.linear
        functional.linear = self._linear  # type: ignore[assignment]

    def leave(self, *_: Any) -> None:
        """Stop: a forward hook that is always called."""
        if self._native is not None:
            functional.linear, self._native = self._native, None

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        assert self._native is not None
        output = self._native(x, weight, bias)
        whole, first = self._attention.in_proj_weight, partial(_samples_first, self._samples)
        if self._out is not None and weight is self._attention.out_proj.weight:
            self._on_call(self._out, [x], output, first, first)
        elif self._into is not None and (weight is whole or weight._base is whole):
            before = (weight.storage_offset() - whole.storage_offset()) // whole.stride(0)
            after = len(whole) - len(weight) - before

            def in_place(gradient: Tensor) -> Tensor:
                return functional.pad(first(gradient), (before, after))

            self._on_call(self._into, [x], output, first, in_place)
        return output


def _samples_first(samples: int, values: Tensor) -> Tensor:
    """Return (B, T, features) of (T, B, features) or (T · B, features)."""
    return values.reshape(-1, samples, values.shape[-1]).transpose(0, 1)
