"""Texts of a run record: they read well in TensorBoard, and back into what they were made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

CONFIGURATION, WARNING, NOT_MEASURED = "configuration", "warning", "not_measured"
_FENCE, _CLOSE = "```json\n", "\n```"
_WARNING = re.compile(r"\*\*(\w+)\*\*\n\n(.*)", re.DOTALL)


@cache
def installed_version() -> str:
    """Return the version of this package, "unknown" where it is not installed."""
    try:
        return version("adaptmix")
    except PackageNotFoundError:
        return "unknown"


class Caution(NamedTuple):
    """A warning that was given in a run."""

    kind: str
    message: str


def configuration_text(configuration: Mapping[str, Any]) -> str:
    """Return a configuration as a block of JSON in Markdown."""
    return f"{_FENCE}{json.dumps(configuration, indent=2, ensure_ascii=False)}{_CLOSE}"


def read_configuration(text: str) -> dict[str, Any]:
    """Return what ``configuration_text`` was made of; nothing if it is not of this kind."""
    body = text.removeprefix(_FENCE).removesuffix(_CLOSE)
    try:
        found = json.loads(body)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def warning_text(caution: Caution) -> str:
    """Return a warning in Markdown."""
    return f"**{caution.kind}**\n\n{caution.message}"


def read_warning(text: str) -> Caution | None:
    """Return what ``warning_text`` was made of, or None."""
    found = _WARNING.fullmatch(text)
    return None if found is None else Caution(found.group(1), found.group(2))
