"""What the README says is there: the tests it cites, the files and the make targets it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", README)))


def functions() -> set[str]:
    """The names of all test functions."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def cited() -> list[str]:
    """The tests that the README cites; an ellipsis stands for the rest of a name."""
    names = {name for quote in QUOTED for name in re.findall(r"\btest_\w+…?(?!\w*\.py)", quote)}
    return sorted(name for name in names if f"{name}.py" not in README)


def test_every_cited_test_is_there() -> None:
    names = functions()
    found = {
        cite: any(name.startswith(cite[:-1]) if cite[-1] == "…" else name == cite for name in names)
        for cite in cited()
    }
    assert len(found) > 30
    assert [cite for cite, there in found.items() if not there] == []


def test_every_named_file_is_there() -> None:
    rooms = ("adaptmix", "integrations", "tests", "examples")
    files = {path.as_posix() for room in rooms for path in (ROOT / room).rglob("*.py")}
    named = {name for quote in QUOTED for name in re.findall(r"[\w/]+\.(?:py|png|md)\b", quote)}
    named |= set(re.findall(r"\]\(([\w./]+)\)", README))
    missing = [
        name
        for name in named
        if not (ROOT / name).exists() and not any(file.endswith(f"/{name}") for file in files)
    ]
    assert missing == []


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", README))))
def test_every_make_target_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
