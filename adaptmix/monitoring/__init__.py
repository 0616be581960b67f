"""What a run records of itself, and the page that says whether it helped.

The page and what it needs are imported when they are first used: training needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptmix.monitoring._page import Page, page
    from adaptmix.monitoring._picture import save_picture
    from adaptmix.monitoring._reading import read_runs
    from adaptmix.monitoring._record import RunRecord, Series

__all__ = ["Page", "RunRecord", "Series", "page", "read_runs", "save_picture"]

_MODULES = {
    "Page": "_page",
    "page": "_page",
    "read_runs": "_reading",
    "RunRecord": "_record",
    "Series": "_record",
    "save_picture": "_picture",
}


def __getattr__(name: str) -> Any:
    """Return a name of ``__all__``, from its module.

    Raises:
        AttributeError: any other name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
