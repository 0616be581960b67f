"""What objects are, in plain values that processes and checkpoints can be compared by."""

from __future__ import annotations

import copyreg
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LONGEST = 60  # characters of a value in a message
_DIGEST_BYTES = 8
_DEEPEST = 12  # settings of settings, beyond which only classes are told

Difference = tuple[str, Any, Any]
"""Where two descriptions differ, and what stands there in each."""


class Missing:
    """Stands where a description has nothing."""

    def __repr__(self) -> str:
        return "nothing"


_MISSING = Missing()


def describe(value: Any, _around: tuple[int, ...] = ()) -> Any:
    """Return an object's class and settings as plain values: never an address in memory.

    Numbers, strings and None stay; arrays become their type, shape and digest; functions and
    classes their names, functions with what they close over.

    Args:
        value: anything.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, Tensor)):
        return f"{value.dtype}{tuple(value.shape)} {digest(value)}"
    if id(value) in _around or len(_around) == _DEEPEST:
        return _name(value)
    inner = partial(describe, _around=(*_around, id(value)))
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [inner(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((inner(item) for item in value), key=repr)
    return {"class": _name(value), **{key: inner(item) for key, item in _settings(value).items()}}


def _name(value: Any) -> str:
    named = value if isinstance(value, (type, FunctionType)) else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _settings(value: Any) -> dict[str, Any]:
    if isinstance(value, type):
        return {}
    if isinstance(value, FunctionType):
        cells = inspect.getclosurevars(value).nonlocals
        return {"defaults": [value.__defaults__, value.__kwdefaults__], "closure": cells}
    if isinstance(value, MethodType):
        return {"function": value.__func__, "of": value.__self__}
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    slots = copyreg._slotnames(type(value))  # type: ignore[attr-defined]
    slotted = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
    return slotted | dict(getattr(value, "__dict__", {}))


def digest(value: Any) -> str:
    """Return a short hash of a value: of its type, its shape and every bit of it.

    Args:
        value: numbers, strings, None, arrays, tensors, and dicts, lists and tuples of them.
    """
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in _bytes(value):
        state.update(part)
    return state.hexdigest()


def _bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        yield f"map {len(value)}:".encode()
        for key in sorted(value, key=repr):
            yield f"{key!r}:".encode()
            yield from _bytes(value[key])
    elif isinstance(value, (list, tuple)):
        yield f"{type(value).__name__} {len(value)}:".encode()
        for item in value:
            yield from _bytes(item)
    elif isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape}:".encode()
        yield value.tobytes()
    elif isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}:".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        yield f"{type(value).__name__} {value!r};".encode()


def differences(
    left: Any, right: Any, *, path: str = "", names: Sequence[str] = ()
) -> Iterator[Difference]:
    """Yield where two descriptions differ.

    Args:
        left: one description, of dicts, lists, arrays, numbers, strings and None.
        right: the other one.
        path: of what is compared, such as ``policy.rate``.
        names: of the domains, by which entries of lists of that length are told.
    """
    left, right = (x.tolist() if isinstance(x, np.ndarray) else x for x in (left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in {**left, **right}:
            inner = f"{path}.{key}" if path else str(key)
            parts = (side.get(key, _MISSING) for side in (left, right))
            yield from differences(*parts, path=inner, names=names)
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        by_name = len(left) == len(names) and path != "domains"
        for i, pair in enumerate(zip(left, right, strict=True)):
            where = f"[{names[i]!r}]" if by_name else f"[{i}]"
            yield from differences(*pair, path=path + where, names=names)
    elif type(left) is not type(right) or repr(left) != repr(right):
        yield path, left, right


def brief(value: Any) -> str:
    """Return a value as it is written, or how it begins if that is long."""
    text = f"{len(value)} values" if isinstance(value, (list, Mapping)) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
