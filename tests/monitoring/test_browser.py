"""Pages in a real browser: nothing sticks out, nothing is fetched, both colour schemes are read."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from adaptmix.monitoring import page
from tests.monitoring import made
from tests.monitoring.test_page import large

pytest.importorskip("matplotlib")

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

WIDTHS = (360, 768, 1280)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,1000"),
)
# Frames are as wide as phones are, which windows may not be.
_MEASURE = """<body><script>
const frames = [...document.querySelectorAll("iframe")];
const contrast = (one, other) => {
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
addEventListener("load", () => {
  const found = frames.map((frame) => {
    const page = frame.contentDocument, view = frame.contentWindow;
    const style = (selector) => view.getComputedStyle(page.querySelector(selector));
    const ground = style("body").backgroundColor;
    return {
      width: frame.clientWidth,
      needed: page.documentElement.scrollWidth,
      requests: view.performance.getEntriesByType("resource").length,
      ground,
      contrast: [".lead", ".sure", "h1"].map((s) => contrast(style(s).color, ground)),
      charts: [...page.querySelectorAll("svg.chart")]
        .filter((chart) => chart.getBoundingClientRect().width > 0)
        .map((chart) => {
          const box = chart.getBoundingClientRect(), text = chart.querySelector("text");
          return [box.width, box.height, text.getBoundingClientRect().height];
        }),
    };
  });
  document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
});
</script></body>"""


def seen(text: str, folder: Path, *, dark: bool = False) -> list[dict[str, Any]]:
    """What a browser makes of a page at several widths."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(text)}">'
        "</iframe>"
        for width in WIDTHS
    )
    path = folder / "frames.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8>{frames}{_MEASURE}", encoding="utf-8")
    assert BROWSER is not None
    run = subprocess.run(
        [
            BROWSER,
            *_FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(run.stdout.split("<pre>")[1].split("</pre>")[0])
    return found


@cache
def text_of(domains: int) -> str:
    """The page of two groups of runs."""
    if domains > 3:
        return page(
            [large(domains, updates=40, label=label) for label in ("a long label", "other!")]
        ).html
    return page(
        [
            *made.seeds("plain", [2.0, 2.2, 2.1], mode="observe"),
            *made.seeds("mixed", [1.9, 2.08, 2.02], epochs=[9.0, 1.0, 1.0], coverage=0.5),
        ]
    ).html


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("domains", [3, 300])
def test_pages_fit_phones_and_screens_in_both_colour_schemes(
    domains: int, dark: bool, tmp_path: Path
) -> None:
    found = seen(text_of(domains), tmp_path, dark=dark)
    assert [frame["width"] for frame in found] == list(WIDTHS)
    for frame in found:
        assert frame["needed"] <= frame["width"], frame
        assert frame["requests"] == 0
        # WCAG AA asks for 4.5.
        assert min(frame["contrast"]) >= 4.5, frame
        lightness = int(frame["ground"].split("(")[1].split(",")[0])
        assert (lightness < 64) if dark else (lightness > 192)
        assert len(frame["charts"]) >= 4
        for width, height, text in frame["charts"]:
            assert 150 < width <= frame["width"]
            assert height > 80
            assert text >= 7.0
