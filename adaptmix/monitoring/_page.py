"""One self-contained page about one or several runs."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from adaptmix.monitoring import _charts as charts
from adaptmix.monitoring import _verdict as verdict
from adaptmix.monitoring import _words as words
from adaptmix.monitoring._advice import KEEP, advise
from adaptmix.monitoring._comparison import Comparison, compare
from adaptmix.monitoring._exports import adaptmix_lines, mixture_lines, steady
from adaptmix.monitoring._gains import NO_DIFFERENCE, Gains, gains
from adaptmix.monitoring._groups import Group, grouped
from adaptmix.monitoring._record import RunRecord
from adaptmix.monitoring._tables import rows_seen, table

# More small pictures than this are folded, and many more are not drawn.
_SHOWN, _DRAWN = 12, 24
_CODE = re.compile(r"`([^`]+)`")
_INSTALL = (
    'A page is drawn with Jinja and Matplotlib, the extra "report": pip install jinja2 matplotlib, '
    'or pip install ".[report]" in a clone of AdaptMix.'
)


@dataclass(frozen=True)
class Page:
    """A page of HTML that opens without a network.

    Attributes:
        html: the whole document.
        text: the verdict and how sure it is, for a terminal.
    """

    html: str
    text: str

    def save(self, path: str | PathLike[str]) -> None:
        """Write the page; directories are made as needed."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        """Show the page in a notebook, in a frame of its own so that styles stay apart."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="AdaptMix report" '
            'style="width:100%;height:80vh;border:0"></iframe>'
        )


@dataclass(frozen=True)
class Tile:
    """A figure that is shown large.

    Attributes:
        figure: the figure.
        words: what it is.
        tone: "better", "worse" or "".
    """

    figure: str
    words: str
    tone: str = ""


def page(records: Sequence[RunRecord]) -> Page:
    """Return the page of runs, which says whether adapting helped.

    The first group that adapts is judged against the observed runs or, without any, against the
    first group given; observed runs alone are judged by what they predict.

    Args:
        records: of ``read_runs``, at least one.

    Raises:
        ValueError: no run.
        ImportError: without the extra "report".
    """
    if not records:
        raise ValueError("records must hold at least one run; got none.")
    groups = grouped(records)
    judged = groups[-1] if len(groups) < 3 else groups[1]
    others = [group for group in groups[1:] if group is not judged]
    comparison = None if judged is groups[0] else compare(groups[0], judged)
    gain = gains(judged)
    said = _verdict(judged, gain, comparison)
    environment = _environment()
    drawn = charts.movers(judged)
    advice = advise(judged, gain, comparison)
    context = {
        "verdict": said,
        "tiles": list(_tiles(judged, gain, comparison)),
        "others": [
            (group.label, _verdict(group, gains(group), compare(groups[0], group)))
            for group in others
        ],
        "groups": groups,
        "judged": judged,
        "drawn": drawn,
        "more": len(judged.first.domains) - len(drawn),
        "pictures": list(_pictures(groups, judged, drawn, comparison)),
        "small": list(_small(groups, judged)),
        "shown": _SHOWN,
        "table": table(groups, judged, drawn, comparison),
        "advice": advice,
        "static": _static(judged) if any(item.title == KEEP for item in advice) else {},
        "cautions": _cautions(groups),
        "unseen": _unseen(groups),
        "costs": list(_costs(groups)),
        "configurations": [(run.label, sorted(run.configuration.items())) for run in records],
        "style": (files("adaptmix.monitoring") / "templates" / "page.css").read_text("utf-8"),
    }
    document = environment.get_template("page.html").render(context)
    text = f"{said.headline}. {said.sentence}\n{said.sure.replace('`', '')}"
    return Page(document, text)


def _environment() -> Any:
    try:
        import jinja2
        import matplotlib  # noqa: F401 (the pictures are drawn with it)
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adaptmix.monitoring"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["prose"] = lambda text: Markup(_prose(text))
    environment.filters["svg"] = Markup
    return environment


def _prose(text: str) -> str:
    """Return text as HTML, with what is between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", html.escape(text, quote=False))


def _verdict(group: Group, gain: Gains, comparison: Comparison | None) -> verdict.Verdict:
    if comparison is not None:
        return verdict.compared(comparison, gain)
    return verdict.observed(group, gain) if group.observing else verdict.alone(group, gain)


def _tiles(judged: Group, gain: Gains, comparison: Comparison | None) -> Iterator[Tile]:
    if gain.lent >= 0.0 and not judged.observing:
        yield Tile(words.share(gain.lent), "of the gradient's error taken away by other domains")
    elif judged.observing and gain.known and not judged.first.auxiliary:
        yield Tile(f"{words.figure(gain.predicted.value)} ×", "less noisy with the best shares")
    elif gain.attained >= 1.0 - NO_DIFFERENCE:
        yield Tile(f"{words.figure(gain.attained)} ×", "less noisy than proportional")
    elif gain.attained > 0.0:
        noisier = words.figure(1.0 / gain.attained)
        yield Tile(f"{noisier} ×", "noisier than proportional", verdict.WORSE)
    outcome = None if comparison is None else comparison.objective
    if comparison is not None and outcome is not None:
        tone = {-1: verdict.BETTER, 0: "", 1: verdict.WORSE}[outcome.sign]
        yield Tile(words.signed(outcome.change.value, outcome.change.margin), "held-out loss", tone)
        if outcome.sign < 0 and outcome.saved >= 0.01:
            yield Tile(words.share(outcome.saved), "fewer steps to the same loss", verdict.BETTER)
        worse = len(comparison.worse)
        tone = verdict.WORSE if worse else ""
        yield Tile(f"{worse} of {len(comparison.domains)}", "domains worse", tone)
    overhead = judged.overhead
    if np.isfinite(overhead):
        yield Tile(words.share(overhead), "more time, for measuring")


def _pictures(
    groups: Sequence[Group], judged: Group, drawn: Sequence[str], comparison: Comparison | None
) -> Iterator[tuple[str, charts.Chart]]:
    """Yield pictures, each with the legend that it needs: "groups", "domains" or ""."""
    lent = bool(judged.first.of("helps"))
    third = ("objective", "Share of the objective") if lent else ("loss_weight", "Loss weight")
    found = (
        ("groups", charts.objective_chart(groups)),
        ("", None if comparison is None else charts.change_chart(comparison, drawn)),
        ("", None if lent else charts.gain_chart(judged)),
        ("domains", _weights(judged, drawn, "sampling_weight", "Share of a batch")),
        ("domains", _weights(judged, drawn, *third)),
    )
    for legend, chart in found:
        if chart is not None:
            yield legend, chart


def _weights(judged: Group, drawn: Sequence[str], quantity: str, title: str) -> charts.Chart | None:
    return charts.weights_chart(judged, drawn, quantity=quantity, title=title)


def _small(groups: Sequence[Group], judged: Group) -> Iterator[charts.Chart]:
    for number, name in enumerate(charts.movers(judged, most=_DRAWN)):
        chart = charts.domain_chart(groups, name, number)
        if chart is not None:
            yield chart


def _static(judged: Group) -> dict[str, str]:
    weights = steady(judged)
    if weights is None:
        return {}
    return {"AdaptMix, without measuring": adaptmix_lines(weights), **mixture_lines(weights)}


def _cautions(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Return (kind, message, runs) of every warning, once."""
    given: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        for run in group.runs:
            for caution in run.cautions:
                given.setdefault((caution.kind, caution.message), []).append(run.label)
    return [(*caution, words.listed(runs)) for caution, runs in given.items()]


def _unseen(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return (module, type) of what the probe does not see, of all runs."""
    found: dict[tuple[str, str], None] = {}
    for group in groups:
        for run in group.runs:
            for line in run.unseen.splitlines()[2:]:
                module, kind = (cell.strip(" `") for cell in line.strip("|").split("|"))
                found[module, kind] = None
    return list(found)


def _costs(groups: Sequence[Group]) -> Iterator[tuple[str, ...]]:
    """Yield label, runs, steps, rows, seconds per step and overhead of each group."""
    for group in groups:
        run, overhead = group.first, group.overhead
        pace = float(np.mean([one.seconds / max(one.steps, 1) for one in group.runs]))
        yield (
            group.label,
            str(len(group.runs)),
            words.grouped(run.steps),
            rows_seen(run),
            f"{words.figure(1000.0 * pace)} ms" if pace > 0.0 else "–",
            words.share(overhead) if np.isfinite(overhead) else "–",
        )
