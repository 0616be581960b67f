"""Compiled models: what is inside of them, and running them uncompiled for a while."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """Return what ``torch.compile`` and ``DistributedDataParallel`` were given, in any order."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def any_compiled(modules: Iterable[nn.Module]) -> bool:
    """Return whether any of these, which are all of a model, is compiled."""
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in modules
    )


class Uncompiled:
    """A switch that makes all compiled code of the process run uncompiled while it is on."""

    def __init__(self) -> None:
        self._stance: Any = None

    def turn(self, on: bool) -> None:
        """Turn it on or off; nothing when it is so already."""
        if on == (self._stance is not None):
            return
        if on:
            self._stance = torch.compiler.set_stance("force_eager")
        else:
            self._stance.__exit__(None, None, None)
            self._stance = None
