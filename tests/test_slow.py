"""The list of slow tests names tests that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SLOW

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("beginning", SLOW)
def test_every_entry_is_there(beginning: str) -> None:
    file, _, function = beginning.partition("::")
    assert (ROOT / file).exists()
    assert not function or f"def {function.split('[')[0]}(" in (ROOT / file).read_text()
