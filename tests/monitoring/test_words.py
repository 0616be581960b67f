"""Numbers, lists and plurals."""

from __future__ import annotations

import pytest

from adaptmix.monitoring import _words as words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "no domains"),
        (1, "one domain"),
        (2, "two domains"),
        (11, "11 domains"),
        (1200, "1\u202f200 domains"),
    ],
)
def test_plurals(count: int, text: str) -> None:
    assert words.counted(count, "domain") == text


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (list("abcdefg"), "a, b, c, d, e and two more"),
    ],
)
def test_lists(names: list[str], text: str) -> None:
    assert words.listed(names) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (1.2345, "1.23"),
        (0.02, "0.0200"),
        (123.4, "123"),
        (9.9e-7, "9.90e-07"),
        (float("nan"), "–"),
    ],
)
def test_figures(value: float, text: str) -> None:
    assert words.figure(value) == text


@pytest.mark.parametrize(
    ("value", "margin", "text"),
    [
        (0.0213, 0.0083, "0.0213 ± 0.0083"),
        (2.5, 12.0, "2 ± 12"),
        (2.5, float("nan"), "2.50"),
        (2.5, 0.0, "2.50"),
        (1540.0, 0.31, "1540.00 ± 0.31"),
    ],
)
def test_margins(value: float, margin: float, text: str) -> None:
    assert words.with_margin(value, margin) == text


@pytest.mark.parametrize(
    ("value", "margin", "text"),
    [
        (-0.0213, 0.0083, "−0.0213 ± 0.0083"),
        (0.0213, 0.0083, "+0.0213 ± 0.0083"),
        (-0.01, 2.0, "0.0 ± 2.0"),
        (0.0, 0.0, "0.00"),
    ],
)
def test_changes_have_their_sign(value: float, margin: float, text: str) -> None:
    assert words.signed(value, margin) == text


@pytest.mark.parametrize(("value", "text"), [(0.161, "16 %"), (0.0991, "9.9 %"), (0.0, "0.0 %")])
def test_shares(value: float, text: str) -> None:
    assert words.share(value) == text


def test_sentences() -> None:
    assert words.sentence(["one thing", "", "another"]) == "One thing; another."
    assert words.sentence([]) == ""
