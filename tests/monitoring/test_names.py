"""Names that loggers and file systems take."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix.monitoring._names import safe_names

# What MLflow allows, whose check is the strictest of the loggers.
_MLFLOW = re.compile(r"[/\w.\- :]+")


@pytest.mark.parametrize(
    ("names", "safe"),
    [
        (["web", "code-2", "a b"], ["web", "code-2", "a b"]),
        (["c++", "c__", "c/+"], ["c__", "c___2", "c___3"]),
        (["..", "../up", ""], ["_.", "_._up", "_"]),
        (["日本", "中国", "é"], ["日本_1", "中国_2", "é_3"]),
        (["café", "Caf"], ["café", "Caf_2"]),
        (["Web", "web"], ["Web", "web_2"]),
    ],
)
def test_names_stay_as_near_as_can_be(names: list[str], safe: list[str]) -> None:
    assert list(safe_names(names)) == safe


@given(st.lists(st.text(max_size=150), min_size=1, max_size=8))
def test_any_names_become_distinct_and_allowed(names: list[str]) -> None:
    safe = safe_names(names)
    kept = {re.sub(r"[^\x00-\x7f]", "", name).casefold() for name in safe}
    assert len(kept) == len(names)
    assert all(name.strip(" .") for name in kept)
    assert all(_MLFLOW.fullmatch(name) and "/" not in name for name in safe)
    assert not any(name.startswith(".") for name in safe)
