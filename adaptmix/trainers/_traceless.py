"""Passes beside training, such as those of a proof, that leave no trace in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from adaptmix.data import own_randomness

_OF_TORCH = frozenset(vars(nn.Module()))
_FEW = 64  # a longer list holds what was gathered, or rows; a pass may add to it
_MEETING = (_BatchNorm, _DropoutNd, nn.RNNBase, nn.MultiheadAttention)


@contextmanager
def leaving_no_trace(
    model: nn.Module, owner: object = None, *, seed: int, ignored: Collection[str] = _OF_TORCH
) -> Iterator[None]:
    """Draw what follows from a seed inside, and give back afterwards all that has changed.

    Given back are random states, buffers, and what the owner and the modules hold: attributes,
    contents of collections and tensors. Parameters that are trained are not copied, for a pass
    does not change them. What other objects gather, such as files, stays.

    Rows meet in batch normalisation whatever the loss is, and where dropout draws one number per
    token that is not padding. Such layers are in evaluation mode inside.

    Args:
        model: whose passes are run.
        owner: has the methods that are called; the model when None.
        seed: of the global generators.
        ignored: attributes of the owner that are left as they are.
    """
    memory = _Memory({id(p) for p in model.parameters() if p.requires_grad})
    owner = model if owner is None else owner
    if owner is model:
        for frozen in _frozen(model):
            memory.keep(frozen)
    else:
        memory.ignore(model.parameters())
    memory.keep_attributes(owner, ignored)
    for module in model.modules():
        memory.keep(module._buffers)
        if module is not owner and not _wraps(module):
            memory.keep_attributes(module, _OF_TORCH)
    meeting = [m for m in model.modules() if m is not model and m.training and _rows_meet(m)]
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    with own_randomness(seed, owner), torch.random.fork_rng([_device()] if used else []):
        if used:
            torch.cuda.manual_seed(seed)
        try:
            for module in meeting:
                module.training = False
            yield
        finally:
            for module in meeting:
                module.training = True
            memory.give_back()


def random_state() -> Tensor:
    """Return the states of torch's generators, on the CPU and on the device in use, as bytes."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


class _Memory:
    """What objects held, by how it is given back.

    Args:
        known: ids of objects that are not to be kept.
    """

    def __init__(self, known: set[int]) -> None:
        self._known = known
        self._undo: list[Callable[[], None]] = []

    def ignore(self, values: Iterator[Any]) -> None:
        """Keep none of these."""
        self._known.update(id(value) for value in values)

    def keep_attributes(self, owner: object, ignored: Collection[str]) -> None:
        """Keep an object's attributes and their contents."""
        values = vars(owner)
        held = {name: value for name, value in values.items() if name not in ignored}

        def undo() -> None:
            for name in [name for name in values if name not in held and name not in ignored]:
                del values[name]
            values.update(held)

        self._undo.append(undo)
        for value in held.values():
            self.keep(value)
            if isinstance(value, nn.Module):
                for part in (*value.parameters(), *value.buffers()):
                    self.keep(part)

    def keep(self, value: Any) -> None:
        """Keep a tensor's numbers, or a collection's contents."""
        if id(value) in self._known or not isinstance(
            value, (Tensor, dict, list, set, deque, tuple)
        ):
            return
        self._known.add(id(value))
        if isinstance(value, Tensor):
            self._keep_tensor(value)
            return
        items = list(value.items() if isinstance(value, dict) else value)
        if not isinstance(value, tuple):
            self._undo.append(lambda: _refill(value, items))
        for part in (
            value.values() if isinstance(value, dict) else items if len(items) <= _FEW else ()
        ):
            self.keep(part)

    def _keep_tensor(self, tensor: Tensor) -> None:
        if tensor.is_inference() or isinstance(
            tensor, nn.UninitializedBuffer | nn.UninitializedParameter
        ):
            return  # which no pass of a training step can change in place
        before = tensor.detach().clone()

        @torch.no_grad()
        def undo() -> None:
            if not torch.equal(tensor, before):
                tensor.copy_(before)

        self._undo.append(undo)

    def give_back(self) -> None:
        """Undo every change since."""
        for undo in self._undo:
            undo()


def _refill(value: Any, items: list[Any]) -> None:
    """Give a collection its contents back, where they are not the same objects."""
    paired = isinstance(value, dict)
    now = list(value.items() if paired else value)
    before, after = (_flat(part) if paired else part for part in (items, now))
    if len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
        return
    value.clear()
    if paired:
        for name, part in items:
            value[name] = part
    else:
        (value.update if isinstance(value, set) else value.extend)(items)


def _flat(pairs: list[tuple[Any, Any]]) -> list[Any]:
    return [part for pair in pairs for part in pair]


def _frozen(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters of parts that do not train at all, such as a teacher that follows."""
    for part in (model, *model.children()):
        own = list(part.parameters(recurse=part is not model))
        if not any(parameter.requires_grad for parameter in own):
            yield from own


def _rows_meet(module: nn.Module) -> bool:
    """Return whether rows meet in a layer in training: its running statistics are buffers."""
    return isinstance(module, _MEETING) or bool(module._buffers and not module._modules)


def _wraps(module: nn.Module) -> bool:
    """Return whether a module is one of torch's that has a state of its own, such as a process."""
    home = type(module).__module__
    lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)
    return lazy or (home.startswith("torch.") and not home.startswith("torch.nn.modules."))


def _device() -> int:
    return torch.cuda.current_device()
