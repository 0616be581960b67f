"""Figures in words: numbers, lists, plurals."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SMALL = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_MOST_NAMES = 5


def number(count: int) -> str:
    """Return a whole number, in words up to ten."""
    return _SMALL[count] if 0 <= count <= 10 else grouped(count)


def grouped(count: float) -> str:
    """Return a whole number with narrow gaps between thousands."""
    return f"{count:,.0f}".replace(",", "\u202f")


def counted(count: int, noun: str) -> str:
    """Return a number and its noun: "one domain", "three domains"."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], *, most: int = _MOST_NAMES) -> str:
    """Return "a", "a and b" or "a, b and c"; the rest is counted."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{number(len(names) - most)} more")
    if len(shown) < 2:
        return "".join(shown)
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def share(value: float) -> str:
    """Return a share of one in percent, with a decimal below ten."""
    percent = 100.0 * value
    return f"{percent:.0f} %" if abs(percent) >= 9.95 else f"{percent:.1f} %"


def figure(value: float, *, digits: int = 3) -> str:
    """Return a number with so many significant digits, "–" when it is not known."""
    if not math.isfinite(value):
        return "–"
    if value != 0.0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}"
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else digits - 1
    return f"{value:.{max(places, 0)}f}"


def with_margin(value: float, margin: float) -> str:
    """Return "0.021 ± 0.008", as precise as two digits of the margin; no ± without one."""
    if not math.isfinite(margin) or margin <= 0.0:
        return figure(value)
    places = min(max(1 - math.floor(math.log10(margin)), 0), 8)
    return f"{value:.{places}f} ± {margin:.{places}f}"


def signed(value: float, margin: float) -> str:
    """Return a change with its sign, if it is one: "−0.021 ± 0.008"."""
    text = with_margin(abs(value), margin)
    if not text.partition(" ")[0].strip("0."):
        return text
    return f"{'−' if value < 0.0 else '+'}{text}"


def sentence(clauses: Sequence[str]) -> str:
    """Join clauses by semicolons into one sentence."""
    text = "; ".join(clause for clause in clauses if clause)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
