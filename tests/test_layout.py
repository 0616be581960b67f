"""What holds for every file and function: length, parameters, and where the tests are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("adaptmix", "integrations", "tests", "examples")
LONGEST = 350
MOST_PARAMETERS = 8


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_is_too_long_to_read_at_once(room: str) -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in (ROOT / room).rglob("*.py")
        if (lines := path.read_text().count("\n")) > LONGEST
    }
    assert long == {}


def test_no_public_function_has_more_than_eight_parameters() -> None:
    """Constructors may: they are an ``__init__`` or a class method that returns its class."""
    many = {
        f"{path.relative_to(ROOT).as_posix()}: {name}": count
        for room in ("adaptmix", "integrations")
        for path in (ROOT / room).rglob("*.py")
        for name, count in parameters(ast.parse(path.read_text()))
        if count > MOST_PARAMETERS
    }
    assert many == {}


def parameters(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the public functions of a module, but constructors, and how much they take."""
    methods = {
        function: kind
        for kind in ast.walk(tree)
        if isinstance(kind, ast.ClassDef)
        for function in kind.body
    }
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
            kind = methods.get(function)
            returned = function.returns and ast.unparse(function.returns)
            if kind is None or returned not in (kind.name, "Self"):
                taken = function.args
                own = len([*taken.posonlyargs, *taken.args, *taken.kwonlyargs]) - (kind is not None)
                yield function.name, own + (taken.vararg is not None) + (taken.kwarg is not None)


def test_every_module_has_its_test_where_a_stranger_looks() -> None:
    """A file of the same name, or one whose docstring names it: ``probe/_rows.py``."""
    docstrings = [
        ast.get_docstring(ast.parse(path.read_text())) or ""
        for path in (ROOT / "tests").rglob("test_*.py")
    ]
    named = {name for text in docstrings for name in re.findall(r"``([\w/]+\.py)``", text)}
    homeless = [
        module
        for module, test in modules()
        if not (ROOT / "tests" / test).exists() and module not in named
    ]
    assert homeless == []


def modules() -> Iterator[tuple[str, str]]:
    """Yield every module below its package's folder, and where its own test would be."""
    for room, tests in (("adaptmix", ""), ("integrations", "integrations/")):
        for path in (ROOT / room).rglob("*.py"):
            if path.name != "__init__.py":
                module = path.relative_to(ROOT / room)
                test = module.with_name(f"test_{module.name.lstrip('_')}")
                yield module.as_posix(), tests + test.as_posix()
