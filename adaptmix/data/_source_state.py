"""The state of a source of rows that has the protocol of torchdata's StatefulDataLoader."""

from __future__ import annotations

import weakref
from copy import deepcopy
from typing import Any

_AS_GIVEN: dict[int, Any] = {}


def has_state(source: Any) -> bool:
    """Return whether a dataset or an iterator says where it is, and can be told."""
    return hasattr(source, "state_dict") and hasattr(source, "load_state_dict")


def state_as_given(dataset: Any) -> Any:
    """Return the state that a dataset had when it was first asked for here.

    Later its state is where some iteration of it is, and no longer where it begins.
    """
    key = id(dataset)
    if key not in _AS_GIVEN:
        _AS_GIVEN[key] = deepcopy(dataset.state_dict())
        weakref.finalize(dataset, _AS_GIVEN.pop, key, None)
    return deepcopy(_AS_GIVEN[key])
