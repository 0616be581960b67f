"""Names of domains that every logger and file system takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What MLflow allows in a metric's name, without the slash, which groups metrics everywhere.
_REFUSED = re.compile(r"[^\w.\- ]")
_LONGEST = 100


def safe_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that may stand in tags, metrics and folders, as near as can be to the given.

    Letters, digits, ``_``, ``-``, ``.`` and blanks stay, others become ``_``. Names that become
    alike, also to a file system that knows no capitals, are numbered.
    """
    taken: set[str] = set()
    safe = []
    for name in names:
        base = _REFUSED.sub("_", name).strip()[:_LONGEST]
        base = "_" + base[1:] if base.startswith(".") else base or "_"
        candidate, number = base, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{base}_{number}"
        taken.add(candidate.casefold())
        safe.append(candidate)
    return tuple(safe)
