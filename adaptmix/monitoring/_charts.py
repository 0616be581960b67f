"""The pictures of a page: shares, loss weights, gains and held-out losses over a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix.monitoring._comparison import Comparison, common_steps
from adaptmix.monitoring._groups import Group
from adaptmix.monitoring._record import RunRecord, Series, values_at
from adaptmix.monitoring._svg import (
    BETTER,
    DOMAIN_COLOURS,
    FAINT,
    GRID,
    INK,
    WORSE,
    domain_colour,
    group_colour,
    inline,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE, _SMALL = (3.9, 2.3), (2.7, 1.75)
# Losses are highest before a run has learnt anything; the axis shows what comes after.
_EARLY = 0.15
_LONGEST = 22
# More points than a chart has pixels are no use.
_POINTS = 240
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "adaptmix",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "text.color": INK,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Chart:
    """A picture and what stands above it.

    Attributes:
        title: what it shows.
        note: how to read it.
        svg: the picture.
    """

    title: str
    note: str
    svg: str


@dataclass(frozen=True, eq=False)
class Line:
    """A curve with the range of its runs.

    Attributes:
        steps: (N,) optimizer steps.
        mean: (N,) mean over runs.
        low: (N,) lowest run.
        high: (N,) highest run.
    """

    steps: np.ndarray[Any, np.dtype[np.int64]]
    mean: FloatArray
    low: FloatArray
    high: FloatArray


def line(curves: Sequence[Series | None]) -> Line | None:
    """Return mean and range of several runs' curves at the steps they share."""
    steps = common_steps(list(curves))
    if steps is None:
        return None
    if steps.size > _POINTS:
        steps = steps[np.unique(np.linspace(0, steps.size - 1, _POINTS).astype(int))]
    values = np.array([values_at(series, steps) for series in curves if series is not None])
    return Line(steps, values.mean(0), values.min(0), values.max(0))


def movers(group: Group, most: int = DOMAIN_COLOURS) -> list[str]:
    """Return the domains whose share or loss weight moved most, in the order of the domains."""
    moved = np.zeros(len(group.first.domains))
    for run in group.runs:
        share = run.final("sampling_weight")
        moved += np.nan_to_num(np.abs(share - run.importance) / np.nanmax([share.max(), 1e-12]))
        moved += np.nan_to_num(np.abs(np.log(np.maximum(run.final("loss_weight"), 1e-6))))
    chosen = np.sort(np.argsort(-moved, kind="stable")[:most])
    return [group.first.domains[i] for i in chosen]


def weights_chart(group: Group, names: Sequence[str], *, quantity: str, title: str) -> Chart | None:
    """Return shares, loss weights or the objective over the run, one colour per domain."""
    drawn = [
        (i, line([run.of(quantity).get(name) for run in group.runs]))
        for i, name in enumerate(names)
    ]
    known = [(i, one) for i, one in drawn if one is not None]
    if not known or (
        quantity == "loss_weight" and all((one.mean == 1.0).all() for _, one in known)
    ):
        return None
    with _figure(_SIZE) as (figure, axes):
        if quantity == "loss_weight":
            axes.axhline(1.0, color=FAINT, linewidth=1.0, linestyle=(0, (2, 3)))
        for i, one in known:
            draw(axes, one, domain_colour(i))
        if quantity == "sampling_weight":
            axes.set_ylim(bottom=0.0)
            percent(axes)
        else:
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.9), max(high, 1.1))
        finish(axes, max(int(one.steps[-1]) for _, one in known))
        note = "only proposed: the run drew rows by importance" if group.observing else ""
        svg = inline(figure, name=quantity, title=title)
    shown = f"Proposed {title[0].lower()}{title[1:]}" if group.observing else title
    return Chart(shown, note, svg)


def gain_chart(group: Group) -> Chart | None:
    """Return predicted and attained gain over the run."""
    predicted = line([run.overall.get("predicted_gain") for run in group.runs])
    attained = line([_attained(run) for run in group.runs])
    if predicted is None or attained is None or not group.first.of("grad_std"):
        return None
    proposed = line([run.overall.get("proposed_gain") for run in group.runs])
    second = proposed if group.observing and proposed is not None else attained
    with _figure(_SIZE) as (figure, axes):
        axes.axhline(1.0, color=FAINT, linewidth=1.0, linestyle=(0, (2, 3)))
        draw(axes, predicted, group_colour(0), dashed=True)
        draw(axes, second, group_colour(1))
        finish(axes, int(predicted.steps[-1]))
        svg = inline(figure, name="gain", title="How much less noisy the gradient is")
    words = "solid: the proposed shares" if group.observing else "solid: the shares in force"
    return Chart(
        "Times less noisy than proportional sampling",
        f"{words}; dashed: the best shares that the statistics predict",
        svg,
    )


def _attained(run: RunRecord) -> Series | None:
    gain, ratio = run.overall.get("predicted_gain"), run.overall.get("variance_ratio")
    if gain is None or ratio is None:
        return None
    steps = np.intersect1d(gain.steps, ratio.steps)
    return Series(steps, values_at(gain, steps) / values_at(ratio, steps))


def objective_chart(groups: Sequence[Group]) -> Chart | None:
    """Return the held-out loss of the objective, one colour per group."""
    svg = _loss_svg([[run.heldout() for run in group.runs] for group in groups], "objective", _SIZE)
    if svg is None:
        return None
    return Chart("Held-out loss", "mean over domains by importance; bands: range of seeds", svg)


def domain_chart(groups: Sequence[Group], name: str, number: int) -> Chart | None:
    """Return one domain's held-out loss, one colour per group."""
    curves = [[run.of("heldout_loss").get(name) for run in group.runs] for group in groups]
    svg = _loss_svg(curves, f"heldout{number}", _SMALL)
    return None if svg is None else Chart(name, "", svg)


def change_chart(comparison: Comparison, names: Sequence[str]) -> Chart | None:
    """Return by how much each domain's held-out loss changed, with intervals.

    Args:
        comparison: of two groups.
        names: the domains to draw.
    """
    outcomes = [
        (_short(name), comparison.domains[name]) for name in names if name in comparison.domains
    ]
    if comparison.objective is None or len(outcomes) < 2:
        return None
    outcomes.append(("mean", comparison.objective))
    outcomes.reverse()
    with _figure((_SIZE[0], 0.75 + 0.24 * len(outcomes))) as (figure, axes):
        axes.axvline(0.0, color=FAINT, linewidth=1.0)
        for place, (_, outcome) in enumerate(outcomes):
            colour = {-1: BETTER, 0: FAINT, 1: WORSE}[outcome.sign]
            reach = outcome.threshold
            change = outcome.change.value
            axes.plot([change - reach, change + reach], [place, place], color=colour, alpha=0.45)
            axes.plot([change], [place], color=colour, marker="o", markersize=5.0)
        axes.set_yticks(range(len(outcomes)), [name for name, _ in outcomes])
        axes.grid(visible=False)
        axes.set_xlabel("← better   worse →")
        svg = inline(figure, name="change", title="Change of the held-out loss by domain")
    bars = "95 % intervals" if comparison.objective.change.sure else "what another order could do"
    return Chart("Change of the held-out loss", f"after minus before; bars: {bars}", svg)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _loss_svg(
    curves: Sequence[Sequence[Series | None]], name: str, size: tuple[float, float]
) -> str | None:
    drawn = [(i, line(group)) for i, group in enumerate(curves)]
    known = [(i, one) for i, one in drawn if one is not None]
    if not known:
        return None
    with _figure(size) as (figure, axes):
        for i, one in known:
            draw(axes, one, group_colour(i))
        last = max(int(one.steps[-1]) for _, one in known)
        finish(axes, last)
        late = np.concatenate(
            [
                values[one.steps >= _EARLY * last]
                for _, one in known
                for values in (one.low, one.high)
            ]
        )
        margin = 0.06 * float(np.ptp(late)) or 0.01
        axes.set_ylim(late.min() - margin, late.max() + margin)
        return inline(figure, name=name, title="Held-out loss")


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.add_subplot()


def draw(
    axes: Axes, one: Line, colour: str, *, dashed: bool = False, label: str | None = None
) -> None:
    """Draw a curve and the band of its runs."""
    style: Any = (0, (4, 2)) if dashed else "-"
    marker = "o" if one.steps.size < 3 else ""
    if (one.high > one.low).any():
        axes.fill_between(one.steps, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
    form: Any = {"linestyle": style, "marker": marker, "markersize": 3.5}
    axes.plot(one.steps, one.mean, color=colour, label=label, **form)


def finish(axes: Axes, last: int) -> None:
    """Set the ticks of both axes, of steps from 0 to the last."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("step", loc="right", labelpad=1.0)


def percent(axes: Axes) -> None:
    """Write the values as percentages."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{100.0 * value:g} %")
