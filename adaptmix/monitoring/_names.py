"""Names of domains that every logger and file system takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What MLflow allows in a metric's name, without the slash, which groups metrics everywhere.
_REFUSED = re.compile(r"[^\w.\- ]")
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_LONGEST = 100


def safe_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that may stand in tags, metrics and folders, as near as can be to the given.

    Letters, digits, ``_``, ``-``, ``.`` and blanks stay, others become ``_``. Names that become
    alike are numbered, also where they do so to a file system that knows no capitals, or to
    MLflow's loggers, which leave out letters beyond ASCII.
    """
    taken: set[str] = set()
    safe = []
    for name in names:
        base = _REFUSED.sub("_", name).strip()[:_LONGEST]
        base = "_" + base[1:] if base.startswith(".") else base or "_"
        empty = not _least(base).strip(" .")
        candidate, number = f"{base}_1" if empty else base, 1
        while _least(candidate) in taken:
            number += 1
            candidate = f"{base}_{number}"
        taken.add(_least(candidate))
        safe.append(candidate)
    return tuple(safe)


def _least(name: str) -> str:
    """Return what is left of a name where the least is kept."""
    return _FOREIGN.sub("", name).casefold()
