"""What holds for every file: its length, and where its tests are."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("adaptmix", "integrations", "tests", "examples")
LONGEST = 350


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_is_too_long_to_read_at_once(room: str) -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in (ROOT / room).rglob("*.py")
        if (lines := path.read_text().count("\n")) > LONGEST
    }
    assert long == {}
