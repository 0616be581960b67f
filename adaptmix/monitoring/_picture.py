"""The shares, losses and gradients of a run as one picture in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from adaptmix.monitoring import _charts as charts
from adaptmix.monitoring._groups import Group, grouped
from adaptmix.monitoring._record import RunRecord
from adaptmix.monitoring._svg import DOMAIN_COLOURS

_INSTALL = (
    'A picture is drawn with Matplotlib, the extra "report": pip install matplotlib, or '
    'pip install ".[report]" in a clone of AdaptMix.'
)
_PANELS = {
    "sampling_weight": "Share of a batch",
    "loss_weight": "Loss weight",
    "grad_std": "Gradient standard deviation",
    "heldout_loss": "Held-out loss",
}
_WIDTH, _HEIGHT, _DPI = 3.6, 2.9, 160


def save_picture(records: Sequence[RunRecord], path: str | PathLike[str]) -> None:
    """Write a picture of how shares, loss weights, gradients and held-out losses went.

    It is of the last group of runs, with one colour for each domain; the ten whose weights moved
    most are drawn. Bands are the range of the group's runs.

    Args:
        records: of ``read_runs``, at least one.
        path: of the file, whose ending says its kind (png, svg, pdf); directories are made.

    Raises:
        ValueError: no run, or one that recorded nothing of its domains.
        ImportError: without the extra "report".
    """
    if not records:
        raise ValueError("records must hold at least one run; got none.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    group = grouped(records)[-1]
    names = charts.movers(group)
    panels = {quantity: _curves(group, names, quantity) for quantity in _PANELS}
    panels = {quantity: curves for quantity, curves in panels.items() if curves}
    if not panels:
        raise ValueError("records must hold scalars of domains; this run recorded none.")
    colours = _colours()
    with mpl.rc_context({**charts.STYLE, **_themed(colours)}):
        figure = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
        for number, (quantity, curves) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), number + 1)
            for name, curve in curves.items():
                colour = colours[f"d{names.index(name) % DOMAIN_COLOURS}"]
                charts.draw(axes, curve, colour, label=name)
            proposed = group.observing and quantity.endswith("_weight")
            words = _PANELS[quantity]
            axes.set_title(f"{words}, proposed" if proposed else words, loc="left")
            if quantity == "sampling_weight":
                axes.set_ylim(bottom=0.0)
                charts.percent(axes)
            charts.finish(axes, max(int(curve.steps[-1]) for curve in curves.values()))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=_DPI, facecolor=colours["card"])


def _curves(group: Group, names: Sequence[str], quantity: str) -> dict[str, charts.Line]:
    """Return the curves of the domains that have any; none where all weights stayed 1."""
    drawn = {
        name: charts.line([run.of(quantity).get(name) for run in group.runs]) for name in names
    }
    known = {name: curve for name, curve in drawn.items() if curve is not None}
    still = quantity == "loss_weight" and all((curve.mean == 1.0).all() for curve in known.values())
    return {} if still else known


def _colours() -> dict[str, str]:
    """Return the colours of the page's light scheme, by their names in its style sheet."""
    sheet = files("adaptmix.monitoring") / "templates" / "page.css"
    light = sheet.read_text("utf-8").partition("@media")[0]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))


def _themed(colours: Mapping[str, str]) -> dict[Any, Any]:
    faint = dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), colours["faint"]
    )
    return {"grid.color": colours["grid"], "text.color": colours["ink"], **faint}
