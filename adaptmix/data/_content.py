"""What a row contains: a hash of it, and its bytes without those of its neighbours."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha1
from typing import Any

import numpy as np
import torch

_PLAIN = frozenset({bool, bytes, complex, float, int, str, type(None)})


def digest(value: Any) -> bytes:
    """Return a hash that rows of the same content have in every process.

    Pickled tensors hold an address, and pickled lists tell which of their parts are one object.
    """
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return sha1(kind.encode() + b"\0" + _content(value), usedforsecurity=False).digest()


def seen(rows: list[Any]) -> str:
    """Return a hash of a chunk's first and last row; empty where it has none."""
    ends = [digest(row) for row in (*rows[:1], *rows[-1:])]
    return sha1(b"".join(ends), usedforsecurity=False).hexdigest() if ends else ""


def _content(value: Any) -> bytes:
    if type(value) in _PLAIN:
        return repr(value).encode(errors="surrogatepass")
    if isinstance(value, torch.Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        return _of_array(np.asarray(value))
    if isinstance(value, Mapping):
        return b"".join(sorted(digest(key) + digest(part) for key, part in value.items()))
    if isinstance(value, list | tuple):
        if _PLAIN.issuperset(map(type, value)):  # thousands of tokens, at once
            return repr(list(value)).encode(errors="surrogatepass")
        return b"".join(map(digest, value))
    if isinstance(value, set | frozenset):
        return b"".join(sorted(map(digest, value)))
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name, None) for field in fields(value)}
        return digest(named)
    return _pickled(_ByContent, value)


def _of_tensor(value: torch.Tensor) -> bytes:
    if value.layout != torch.strided:
        value = value.to_dense()
    value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    flat = value.reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
    return f"{value.dtype}{tuple(value.shape)}".encode() + flat.numpy().tobytes()


def _of_array(value: np.ndarray[Any, Any]) -> bytes:
    inside = digest(value.tolist()) if value.dtype.hasobject else value.tobytes()
    return f"{value.dtype}{value.shape}".encode() + inside


class _ByContent(pickle.Pickler):
    """Pickles other objects, and in them tensors and arrays as a hash."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray):
            return bytes, (digest(value),)
        return NotImplemented


class _Alone(pickle.Pickler):
    """Pickles a part of a tensor without the rest: torch would send a whole shard for each row."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and value.layout == torch.strided:
            own = value.numel() * value.element_size()
            if value.untyped_storage().nbytes() > own:
                alone = value.detach().clone().requires_grad_(value.requires_grad)
                return alone.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        return NotImplemented


class Packed(bytes):
    """A row as it is kept, or on its way between processes."""


def packed(row: Any) -> Packed:
    """Return a row apart from every other object."""
    return Packed(_pickled(_Alone, row))


def unpacked(row: Any) -> Any:
    """Return a row as its stream gave it; a new object each time if it was packed."""
    return pickle.loads(row) if isinstance(row, Packed) else row


def _pickled(pickler: type[pickle.Pickler], value: Any) -> bytes:
    buffer = io.BytesIO()
    pickler(buffer).dump(value)
    return buffer.getvalue()
