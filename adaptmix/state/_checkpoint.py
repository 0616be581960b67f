"""State as plain tensors, numbers and strings, and files that are never half written."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptmix.errors import StateError
from adaptmix.state._identity import brief, differences, digest

SCHEMA = 2
_ARRAY = "__array__"
_TUPLE = "__tuple__"
_CHECKSUMS = "checksums"
# Another host's partial files are not known to be abandoned before they are this old.
_DAY = 86400.0
_ANOTHER = "Use an older checkpoint."


def encode(state: Any) -> Any:
    """Return ``state`` with NumPy arrays as tensors, so that ``weights_only`` loading takes it.

    Args:
        state: numbers, strings, None, arrays, tensors, and dicts, lists and tuples of them.

    Raises:
        TypeError: anything else.
    """
    if isinstance(state, np.generic):  # before float and str, which two of them are
        return state.item()
    if state is None or isinstance(state, (bool, int, float, str, Tensor)):
        return state
    if isinstance(state, np.ndarray):
        return {_ARRAY: torch.from_numpy(state.copy())}
    if isinstance(state, Mapping):
        return {key: encode(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return {_TUPLE: [encode(value) for value in state]}
    if isinstance(state, list):
        return [encode(value) for value in state]
    raise TypeError(
        "state must be made of numbers, strings, None, arrays, tensors, dicts, lists and tuples; "
        f"got {type(state).__name__}."
    )


def decode(state: Any) -> Any:
    """Undo ``encode``."""
    if isinstance(state, Mapping):
        if set(state) == {_ARRAY}:
            # Detached, for a bit that says that it requires a gradient changes nothing in it.
            return state[_ARRAY].detach().cpu().numpy().copy()
        if set(state) == {_TUPLE}:
            return tuple(decode(value) for value in state[_TUPLE])
        return {key: decode(value) for key, value in state.items()}
    if isinstance(state, list):
        return [decode(value) for value in state]
    return state.detach() if isinstance(state, Tensor) else state


def seal(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an encoded state that ``unseal`` can tell from a damaged one."""
    sums = {path: digest(leaf) for path, leaf in _leaves(state, "")}
    return {"schema": SCHEMA, **state, _CHECKSUMS: sums}


def unseal(state: Any) -> dict[str, Any]:
    """Return the decoded state that ``seal`` was given.

    Raises:
        StateError: no state of this version, or a field that is not to the bit as it was sealed.
    """
    if not isinstance(state, Mapping):
        raise StateError(
            f"state must be what state_dict() returned; got {type(state).__name__}. "
            "Load it with torch.load first."
        )
    if type(state.get("schema")) is not int or state["schema"] != SCHEMA:
        raise StateError(
            f"schema must be {SCHEMA}; got {brief(state.get('schema'))}. The state is damaged, or "
            "was written by another version of AdaptMix."
        )
    content = {key: state[key] for key in state if key not in ("schema", _CHECKSUMS)}
    sums = state.get(_CHECKSUMS)
    if not isinstance(sums, Mapping):
        raise StateError(f"{_CHECKSUMS} must be in the state; it is damaged. {_ANOTHER}")
    found = {path: digest(leaf) for path, leaf in _leaves(content, "")}
    for path in {**sums, **found}:
        if path not in found:
            raise StateError(f"{path} must be in the state; it is missing. {_ANOTHER}")
        if path not in sums:
            raise StateError(f"{path!r} must not be in the state: nothing saved it. {_ANOTHER}")
        if sums[path] != found[path]:
            raise StateError(
                f"{path} must be what was saved; its checksum differs, so the state is damaged. "
                f"{_ANOTHER}"
            )
    return dict(decode(content))


def _leaves(state: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(state, Mapping) or not state or set(state) in ({_ARRAY}, {_TUPLE}):
        yield path, state
        return
    for key, value in state.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def expect(state: Mapping[str, Any], *, names: Sequence[str] = (), **values: Any) -> None:
    """Check that a saved state belongs to what now loads it.

    Args:
        state: a saved state.
        names: of the domains, for the message.
        values: what it must hold.

    Raises:
        StateError: a key is missing, or its value is not the one given here.
    """
    for name, value in values.items():
        if name not in state:
            raise StateError(f"{name} must be in the state; it is missing.")
        apart = list(differences(state[name], value, path=name, names=names))
        if apart:
            path, saved, now = apart[0]
            more = f" ({len(apart)} such differences)" if len(apart) > 1 else ""
            raise StateError(
                f"{path} must be what the saved run had: {brief(saved)}; got {brief(now)}{more}. "
                "Build the controller as it was built then."
            )


@contextmanager
def damage() -> Iterator[None]:
    """Turn what a damaged state provokes while it is taken over into a StateError."""
    try:
        yield
    except StateError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise StateError(
            f"state must be what state_dict() returned; it is damaged: {error}. {_ANOTHER}"
        ) from error


def save(state: Any, path: str | os.PathLike[str]) -> None:
    """Write a state so that ``path`` holds either all of it or what it held before.

    A file that is replaced keeps its mode, and a link its place: what it leads to is replaced.
    Partial files that killed processes left beside it are removed.

    Args:
        state: what a ``state_dict()`` returned.
        path: file to replace.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}")
    _remove_abandoned(target)
    try:
        with partial.open("wb") as file:
            with suppress(FileNotFoundError):
                partial.chmod(stat.S_IMODE(target.stat().st_mode))
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _remove_abandoned(target: Path) -> None:
    """Remove partial files of this target whose processes are gone."""
    prefix, host = f".{target.name}.", socket.gethostname()
    for file in target.parent.glob(f"{_literal(prefix)}*"):
        owner, _, process = file.name.removeprefix(prefix).rpartition(".")
        if not owner or not process.isdecimal():
            continue
        with suppress(OSError):  # another process may remove it first
            old = time.time() - file.stat().st_mtime > _DAY
            if old if owner != host else not _running(int(process)):
                file.unlink()


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _running(process: int) -> bool:
    if os.name != "posix":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a loss of power, where folders can be synchronised."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def load(path: str | os.PathLike[str]) -> Any:
    """Read what ``save`` wrote, running no code from the file.

    Raises:
        OSError: there is no such file, or it cannot be read.
        StateError: it is damaged, or of another kind.
    """
    with Path(path).open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a broken file makes a parser raise
            reason = brief(str(error).partition("\n")[0])
            raise StateError(
                f"{path} must be a file that AdaptMix wrote; it is damaged, or of another kind "
                f"({type(error).__name__}: {reason}). {_ANOTHER}"
            ) from error
