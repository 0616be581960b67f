"""Where a Trainer begins to train or to evaluate; the callback works inside, and only there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from transformers import Trainer

_ENTRIES = ("train", "evaluate", "predict")


def wrap_entries(trainer: Trainer, running: Callable[[], AbstractContextManager[None]]) -> None:
    """Let a trainer train, evaluate and predict inside of ``running()``.

    These three stay wrapped, so that a trainer may train again; nothing else does.

    Args:
        trainer: of a callback.
        running: of the callback.
    """
    for name in _ENTRIES:
        own = getattr(trainer, name)

        def entered(*args: Any, own: Callable[..., Any] = own, **kwargs: Any) -> Any:
            with running():
                return own(*args, **kwargs)

        setattr(trainer, name, functools.wraps(own)(entered))
