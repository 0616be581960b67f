"""Sees what a model shows in a training forward pass, and changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adaptmix import Segments

_KEPT = ("aux_loss", "z_loss")  # how mixtures of experts name losses that are not of rows


@dataclass
class Seen:
    """What the forward passes of one micro-batch showed.

    Attributes:
        outputs: of the first one.
        given: inputs of the model's ``loss_function``, with ``logits``; None if it was not called.
        tensors: what its outputs hold, and what its loss function or the named head was given.
        auxiliary: declared auxiliary losses, which are not of rows.
    """

    outputs: Any = None
    given: Mapping[str, Any] | None = None
    tensors: list[Tensor] = field(default_factory=list)
    auxiliary: list[Tensor] = field(default_factory=list)

    def add(self, outputs: Any) -> None:
        """Take in the outputs of a forward pass, however they are nested."""
        if self.outputs is None:
            self.outputs = outputs
        for name, tensor in _tensors(outputs):
            if name.endswith(_KEPT):
                self.auxiliary.append(tensor)
            else:
                self.tensors.append(tensor)

    def of_rows(self, rows: int) -> list[Tensor]:
        """Return the tensors of so many rows."""
        return [tensor for tensor in self.tensors if tensor.ndim and len(tensor) == rows]

    def of_positions(self, segments: Segments) -> list[Tensor]:
        """Return the tensors of the positions that rows are packed in, or of all but the last."""
        packed, positions = segments.shape
        shapes = ((packed, positions), (packed, positions - 1))
        return [tensor for tensor in self.tensors if tensor.shape[:2] in shapes]


class Capture:
    """Watches a model, its loss function and a named head while they train.

    Args:
        model: the model that computes the loss, without wrappers.
        head: name of the module whose output rows are weighted at; the model's outputs when None.
        within: the model whose module that is.

    Raises:
        ValueError: there is no such module.
    """

    def __init__(self, model: Any, *, head: str | None, within: nn.Module) -> None:
        self._model = model
        self._head = None if head is None else _named(within, head)
        self._original: Callable[..., Tensor] | None = getattr(model, "loss_function", None)
        self._own = "_loss_function" in vars(model)
        self._seen: Seen | None = None
        if self._original is not None:
            self._signature = inspect.signature(self._original)
            model.loss_function = self._stand_in

    @property
    def loss_function(self) -> Callable[..., Tensor] | None:
        """The model's own."""
        return self._original

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Seen]:
        """Watch the training forward passes of one micro-batch.

        Args:
            model: what the trainer calls, with all its wrappers.
        """
        seen = self._seen = Seen()
        handles = [model.register_forward_hook(self._on_forward)]
        if self._head is not None:
            handles.append(self._head.register_forward_hook(self._on_head))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
            self._seen = None

    def _on_forward(self, module: nn.Module, args: Any, outputs: Any) -> None:
        seen = self._seen
        if seen is not None and torch.is_grad_enabled():
            head = seen.tensors
            seen.add(outputs)
            if self._head is not None:
                seen.tensors = head

    def _on_head(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._seen is not None and torch.is_grad_enabled():
            self._seen.tensors.extend(tensor for _, tensor in _tensors(output))

    # Outside of compiled code, where what is written down here would be lost.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _stand_in(self, *args: Any, **kwargs: Any) -> Any:
        original, seen = self._original, self._seen
        if original is None:
            raise RuntimeError("loss_function was given back to the model; got a call to another.")
        if seen is not None and torch.is_grad_enabled():
            bound = self._signature.bind(*args, **kwargs).arguments
            given = {**bound, **bound.pop("kwargs", {})}
            logits = given.get("logits", given.get("pooled_logits"))
            if isinstance(logits, Tensor) and self._head is None:
                seen.given = {**given, "logits": logits}
                seen.tensors.append(logits)
        return original(*args, **kwargs)

    def remove(self) -> None:
        """Give the model its loss function back; a second call does nothing."""
        if self._original is None:
            return
        if self._own:
            self._model.loss_function = self._original
        elif "_loss_function" in vars(self._model):
            del self._model._loss_function
        self._original = None


@contextmanager
def watch_outputs(model: nn.Module) -> Iterator[Seen]:
    """See the outputs of the first forward pass of a model, with or without gradients."""
    seen = Seen()

    def on_forward(_: nn.Module, __: Any, outputs: Any) -> None:
        if seen.outputs is None:
            seen.add(outputs)

    handle = model.register_forward_hook(on_forward)
    try:
        yield seen
    finally:
        handle.remove()


def _named(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        outer = ", ".join(key for key, _ in model.named_children())
        raise ValueError(
            f"head must name a module of the model; got {name!r}. Its outermost are {outer}; "
            "a head's name may have dots."
        )
    return modules[name]


def _tensors(outputs: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        yield name, outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from _tensors(value, str(key))
    elif isinstance(outputs, (tuple, list)):
        for value in outputs:
            yield from _tensors(value, name)
