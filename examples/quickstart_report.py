"""What the quickstart prints and draws: pure functions of two runs' trajectories."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart by colour-blind readers too; grey is the baseline's.
_COLOURS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "#56B4E9", "#B8A800")
_BASELINE, _ADAPTED = "#8A8A8A", "#222222"
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
}


@dataclass
class Run:
    """One run's trajectories: held-out losses at ``eval_steps``, weights at ``update_steps``.

    Attributes:
        label: what the run is called.
        importance: share of each domain in the objective; it sums to one.
        rows: training rows per domain.
        eval_steps: optimizer steps of the evaluations, ascending.
        heldout: per domain, mean held-out loss per row at each evaluation, nats.
        update_steps: optimizer steps of the updates, ascending.
        sampling: per domain, share of a batch at each update.
        loss_weights: per domain, factor on its loss at each update.
        grad_std: per domain, the last estimate of the per-sample gradient's standard deviation.
        variance_ratio: gradient variance of proportional sampling over that of the adapted shares:
            for the baseline as predicted before anything was changed, for the other as attained.
    """

    label: str
    importance: dict[str, float]
    rows: dict[str, int]
    eval_steps: list[int] = field(default_factory=list)
    heldout: dict[str, list[float]] = field(default_factory=dict)
    update_steps: list[int] = field(default_factory=list)
    sampling: dict[str, list[float]] = field(default_factory=dict)
    loss_weights: dict[str, list[float]] = field(default_factory=dict)
    grad_std: dict[str, float] = field(default_factory=dict)
    variance_ratio: float = float("nan")

    def mean_heldout(self) -> list[float]:
        """Return the held-out loss of the objective: the mean over domains by importance."""
        curves = np.array([self.heldout[name] for name in self.importance])
        means = np.array(list(self.importance.values())) @ curves
        return [float(value) for value in means]


def steps_to_reach(steps: list[int], losses: list[float], target: float) -> float | None:
    """Return when a curve first reaches ``target``, interpolated; None if it never does."""
    for i, loss in enumerate(losses):
        if loss <= target:
            if i == 0:
                return float(steps[0])
            passed = (losses[i - 1] - target) / (losses[i - 1] - loss)
            return steps[i - 1] + passed * (steps[i] - steps[i - 1])
    return None


def table(baseline: Run, adapted: Run) -> str:
    """Return the comparison per domain, the mean that is optimised for, and variance ratios."""
    header = ["domain", "rows", "share", "loss weight", "grad std"]
    header += ["loss, proportional", "loss, adaptmix", "same loss at step"]
    lines = [header]
    for name in adapted.importance:
        shares, weights = adapted.sampling[name], adapted.loss_weights[name]
        cells = [name, f"{adapted.rows[name]:,}", f"{shares[0]:.2f} → {shares[-1]:.2f}"]
        cells += [f"{weights[-1]:.2f}", f"{adapted.grad_std[name]:.3g}"]
        curves = baseline.heldout[name], adapted.heldout[name]
        lines.append(cells + _outcome(adapted.eval_steps, *curves))
    total = f"{sum(adapted.rows.values()):,}"
    outcome = _outcome(adapted.eval_steps, baseline.mean_heldout(), adapted.mean_heldout())
    lines.append(["mean by importance", total, "", "", "", *outcome])
    closing = (
        "Gradient variance of proportional sampling over that of the adapted shares: "
        f"{baseline.variance_ratio:.2f} predicted, {adapted.variance_ratio:.2f} attained."
    )
    return f"{_aligned(lines)}\n{closing}\n{verdict(baseline, adapted)}"


def verdict(baseline: Run, adapted: Run) -> str:
    """Return one sentence on who won, whoever it was."""
    before, after = baseline.mean_heldout(), adapted.mean_heldout()
    gain = before[-1] - after[-1]
    worse = [n for n in adapted.heldout if adapted.heldout[n][-1] > baseline.heldout[n][-1]]
    words = f"{abs(gain):.3f} nats {'lower' if gain >= 0 else 'higher'} than"
    at = steps_to_reach(adapted.eval_steps, after, before[-1])
    saved = f", which it reached at step {at:.0f} of {adapted.eval_steps[-1]}" if at else ""
    but = f" Higher on: {', '.join(worse)}." if worse else ""
    return f"The adapted run's held-out loss is {words} the proportional run's{saved}.{but}"


def draw(baseline: Run, adapted: Run, path: str | PathLike[str]) -> None:
    """Write the figure: the objective, both weights, and every domain's held-out loss.

    Domains keep one colour; the titles of the lower panels are its legend.
    """
    names = list(adapted.importance)
    rows = -(-len(names) // 6)
    columns = -(-len(names) // rows)
    ratios = (2.3, 0.35 + 1.4 * rows)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.0, sum(ratios)), layout="constrained", dpi=300)
        grid = figure.add_gridspec(2, 1, height_ratios=ratios)
        upper = grid[0].subgridspec(1, 3, width_ratios=(1.3, 1, 1))
        lower = grid[1].subgridspec(rows, columns)
        mean, sampling, loss = (figure.add_subplot(upper[i]) for i in range(3))
        _mean_panel(mean, baseline, adapted)
        _weights_panel(sampling, adapted.update_steps, adapted.sampling, baseline.importance)
        sampling.set_title("Share of a batch")
        unweighted = dict.fromkeys(names, 1.0)
        _weights_panel(loss, adapted.update_steps, adapted.loss_weights, unweighted)
        loss.set_title("Loss weight")
        for i, name in enumerate(names):
            axes = figure.add_subplot(lower[i])
            axes.plot(baseline.eval_steps, baseline.heldout[name], color=_BASELINE)
            axes.plot(adapted.eval_steps, adapted.heldout[name], **_line(i))
            axes.set_title(name, color=_line(i)["color"], fontweight="bold")
            if i % columns == 0:
                axes.set_ylabel("Held-out loss (nats)")
        for axes in figure.axes:
            _finish(axes, adapted.eval_steps[-1])
        figure.supxlabel("Optimizer step", fontsize=_STYLE["font.size"])
        figure.savefig(path)


def _mean_panel(axes: Axes, baseline: Run, adapted: Run) -> None:
    before, after = baseline.mean_heldout(), adapted.mean_heldout()
    axes.plot(baseline.eval_steps, before, color=_BASELINE, label=baseline.label)
    axes.plot(adapted.eval_steps, after, color=_ADAPTED, label=adapted.label)
    last = baseline.eval_steps[-1]
    at = steps_to_reach(adapted.eval_steps, after, before[-1])
    if at is not None and at < last:
        axes.plot([at, last], [before[-1]] * 2, color=_BASELINE, linestyle=":", linewidth=1.0)
        # Left of a falling curve there is room.
        words = f"{1 - at / last:.0%} fewer steps  "
        axes.text(at, before[-1], words, ha="right", va="top")
    axes.set_title("Held-out loss, mean of domains (nats)")
    axes.legend(loc="upper right", handlelength=1.3, borderaxespad=0.0)


def _weights_panel(
    axes: Axes, steps: list[int], curves: dict[str, list[float]], unadapted: dict[str, float]
) -> None:
    for level in set(unadapted.values()):
        axes.axhline(level, color=_BASELINE, linestyle=":", linewidth=1.0)
    for i, name in enumerate(unadapted):
        axes.plot(steps, curves[name], **_line(i))
    axes.set_ylim(bottom=0.0)


def _finish(axes: Axes, last: int) -> None:
    axes.set_xlim(0, last)
    axes.set_xticks([0, last // 2, last])
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def _line(i: int) -> dict[str, Any]:
    """Return a domain's colour; dashes tell apart what the colours no longer do."""
    turn, colour = divmod(i, len(_COLOURS))
    return {"color": _COLOURS[colour], "linestyle": ("-", "--", "-.", ":")[turn % 4]}


def _outcome(steps: list[int], before: list[float], after: list[float]) -> list[str]:
    at = steps_to_reach(steps, after, before[-1])
    reached = "not reached" if at is None else f"{at:.0f} of {steps[-1]}"
    return [f"{before[-1]:.3f}", f"{after[-1]:.3f}", reached]


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("─" * width for width in widths)
    text = [
        "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])
