"""Where a training forward pass shows every row's own loss: the seams of models and trainers.

Each seam takes the tensor that the trainer would make its loss from, and gives it a leaf instead.
What the trainer then does with the leaf (divide by tokens, multiply by processes, add a model's
auxiliary loss) is read off its gradient, never assumed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptmix.errors import SeamError


@dataclass
class Seen:
    """What one training forward pass showed.

    Attributes:
        outputs: of the model.
        given: inputs of the model's loss function, with ``logits``; None if it was not called.
        leaf: stands in for the loss, or for the log-probabilities, that the trainer goes on with.
        log_probs: (B, T) of TRL's fused head; None elsewhere.
    """

    outputs: Any = None
    given: Mapping[str, Any] | None = None
    leaf: Tensor | None = None
    log_probs: Tensor | None = None

    def coefficient(self, loss: Tensor) -> Tensor | None:
        """Return what ``loss`` multiplies the leaf by; None where it does not depend on it."""
        if self.leaf is None or not loss.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(loss, self.leaf, retain_graph=True, allow_unused=True)
        return gradient


@contextmanager
def watch_outputs(model: nn.Module) -> Iterator[Seen]:
    """See the outputs of the first forward pass of a model, and change nothing."""
    seen = Seen()

    def on_forward(_: nn.Module, __: Any, outputs: Any) -> None:
        if seen.outputs is None:
            seen.outputs = outputs
            seen.log_probs = getattr(outputs, "log_probs", None)

    handle = model.register_forward_hook(on_forward)
    try:
        yield seen
    finally:
        handle.remove()


class LossFunction:
    """Stands in for a model's ``loss_function`` while it trains.

    Args:
        model: the model that computes the loss; one without ``loss_function`` is left alone.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._original: Callable[..., Tensor] | None = getattr(model, "loss_function", None)
        self._own = "_loss_function" in vars(model)
        self._seen: Seen | None = None
        self._detach = self._evaluate = True
        if self._original is not None:
            self._signature = inspect.signature(self._original)
            model.loss_function = self._stand_in

    @contextmanager
    def open(self, model: nn.Module, *, detach: bool, evaluate: bool) -> Iterator[Seen]:
        """Watch one training forward pass.

        Args:
            model: what the trainer calls, with all its wrappers.
            detach: whether the trainer goes on with a leaf, and not with the loss itself.
            evaluate: whether the leaf must have the loss's value; it is 0 otherwise, which saves
                computing the loss twice.
        """
        seen = self._seen = Seen()
        self._detach, self._evaluate = detach, evaluate
        handle = model.register_forward_hook(self._on_forward)
        try:
            yield seen
        finally:
            handle.remove()
            self._seen = None

    def _on_forward(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        seen = self._seen
        if seen is None or not torch.is_grad_enabled():
            return outputs
        if seen.outputs is not None:
            raise SeamError(
                "The model must be called once per micro-batch in training; the trainer's "
                "compute_loss called it again, so rows cannot be told from each other. Pass "
                "AdaptMixCallback(loss=...) or train with one forward pass."
            )
        seen.outputs = outputs
        log_probs = getattr(outputs, "log_probs", None)
        if isinstance(log_probs, Tensor):
            seen.log_probs = log_probs
            if self._detach:
                seen.leaf = outputs.log_probs = log_probs.detach().requires_grad_()
        return outputs

    # Outside of compiled code, where what is written down here would be lost.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _stand_in(self, *args: Any, **kwargs: Any) -> Any:
        original, seen = self._original, self._seen
        if original is None:
            raise SeamError("loss_function was given back to the model; got a call all the same.")
        if seen is None or not torch.is_grad_enabled():
            return original(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs).arguments
        given = {**bound, **bound.pop("kwargs", {})}
        logits = given.get("logits", given.get("pooled_logits"))
        if not isinstance(logits, Tensor) or not isinstance(given.get("labels"), Tensor):
            return original(*args, **kwargs)
        seen.given = {**given, "logits": logits}
        if not self._detach:
            return original(*args, **kwargs)
        value = logits.new_zeros(())
        if self._evaluate:
            with torch.no_grad():
                value = original(*args, **kwargs)
        seen.leaf = value.detach().float().requires_grad_()
        return seen.leaf.clone()  # trainers multiply it in place

    def remove(self) -> None:
        """Give the model its loss function back; a second call does nothing."""
        if self._original is None:
            return
        if self._own:
            self._model.loss_function = self._original
        elif "_loss_function" in vars(self._model):
            del self._model._loss_function
        self._original = None
