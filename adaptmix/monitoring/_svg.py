"""Figures as inline SVG that takes its colours and its type from the page around it."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as Tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_REFERENCE = re.compile(r"#([\w.-]+)")
_FONT = re.compile(r"font: (?:[\w]+ )?([\d.]+px)[^;]*")
_COLOUR = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE)

# Colours a figure is drawn in stand for those of the page's style sheet.
DOMAIN_COLOURS = 10
INK, FAINT, GRID = "#010001", "#010002", "#010003"
BETTER, WORSE = "#010004", "#010005"
_ROLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid", BETTER: "--better", WORSE: "--worse"}
_ROLES |= {f"#0200{i:02x}": f"--d{i}" for i in range(DOMAIN_COLOURS)}
_ROLES |= {f"#0300{i:02x}": f"--g{i}" for i in range(DOMAIN_COLOURS)}


def domain_colour(i: int) -> str:
    """Return what stands for the colour of domain ``i`` in a figure."""
    return f"#0200{i % DOMAIN_COLOURS:02x}"


def group_colour(i: int) -> str:
    """Return what stands for the colour of group ``i`` in a figure."""
    return f"#0300{i % DOMAIN_COLOURS:02x}"


def inline(figure: Figure, *, name: str, title: str) -> str:
    """Return a figure as an ``<svg>`` element.

    Args:
        figure: drawn in the colours above.
        name: what sets its identifiers apart from other figures' on the page.
        title: what a screen reader says.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = Tree.fromstring(buffer.getvalue())
    referred = set(_REFERENCE.findall(" ".join(_references(root)))) & _identifiers(root)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id" and value not in referred:
                continue
            kept = key.removeprefix(_XLINK)
            element.set(kept, _themed(_renamed(kept, value, name)))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("style", "metadata"):
                parent.remove(child)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", title)
    return Tree.tostring(root, encoding="unicode", short_empty_elements=False)


def _references(root: Tree.Element) -> list[str]:
    values = []
    for element in root.iter():
        for key, value in element.attrib.items():
            if key.endswith("href") or "url(#" in value:
                values.append(value)
    return values


def _identifiers(root: Tree.Element) -> set[str]:
    return {element.attrib["id"] for element in root.iter() if "id" in element.attrib}


def _renamed(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" or "url(#" in value:
        return value.replace("#", f"#{name}-")
    return value


def _themed(value: str) -> str:
    value = _FONT.sub(r"font-size: \1", value)
    return _COLOUR.sub(lambda found: _role(found.group()), value)


def _role(colour: str) -> str:
    role = _ROLES.get(colour.lower())
    return colour if role is None else f"var({role})"
