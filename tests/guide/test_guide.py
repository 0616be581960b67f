"""The guide's code runs: the Python blocks of a page, from top to bottom, in one namespace."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[2] / "examples" / "guide"
PAGES = sorted(path.name for path in GUIDE.glob("*.md"))
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>.*)\n(?P<code>(?:.*\n)*?)(?P=indent)```$", re.M)
# Only Python runs; the others are for a shell, a settings file or the eyes.
LANGUAGES = {"python", "bash", "yaml", "diff", "text"}


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language, and code with the page's own line numbers."""
    text = (GUIDE / page).read_text()
    return [
        (
            match["language"].strip(),
            "\n" * text.count("\n", 0, match.start("code")) + textwrap.dedent(match["code"]),
        )
        for match in FENCE.finditer(text)
    ]


def test_there_is_code_to_run() -> None:
    assert sum(language == "python" for page in PAGES for language, _ in blocks(page)) >= 5


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page: str) -> None:
    found = blocks(page)
    assert (GUIDE / page).read_text().count("```") == 2 * len(found)
    assert {language for language, _ in found} <= LANGUAGES


@pytest.mark.parametrize("page", [p for p in PAGES if any(b[0] == "python" for b in blocks(p))])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, GUIDE / page, "exec"), namespace)
