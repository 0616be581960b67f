"""What the experiments share: policies, seeds, two processes, intervals, tables and pictures."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor
from tqdm import tqdm

from adaptmix import Mixture
from adaptmix.errors import LossWeightWarning, UnseenDomainWarning
from adaptmix.policies import ERMA, FGLS, Policy, Shrink, Static, VarianceAware, chain

mpl.use("Agg")
from matplotlib import pyplot as plt

Curves = NDArray[np.float64]
"""(seeds, points): the error along each run."""
Results = dict[str, dict[str, Curves]]
"""Curves by setting and policy."""

COLOURS = {
    "proportional": "#222222",
    "uniform": "#999999",
    "VA": "#0072b2",
    "FGLS": "#e69f00",
    "ERMA": "#f0e442",
    "ERMA+VA": "#56b4e9",
    "FGLS+VA": "#cc79a7",
    "Joint": "#009e73",
}
NAMES = tuple(COLOURS)
BASE = "proportional"


@dataclass(frozen=True)
class Experiment:
    """One picture and one table.

    Attributes:
        name: of its files.
        error: what is measured, as the picture's axis says it.
        settings: by the name that the table shows.
        train: (setting, policy name, seed) to the error along the run; its last quarter counts.
        every: optimizer steps between two errors.
    """

    name: str
    error: str
    settings: dict[str, Any]
    train: Callable[[Any, str, int], list[float]]
    every: int = 1


def make_policy(name: str, mixture: Mixture, joint: Policy) -> Policy:
    """Return a policy by the name the tables use.

    Importance is proportional to the domains' sizes, as in the paper, so that proportional
    sampling is sampling by importance and uniform sampling is not.
    """
    equal = Static(sampling=dict.fromkeys(mixture.domains, 1.0))
    policies: dict[str, Policy] = {
        "proportional": Static(),
        "uniform": equal,
        "VA": chain(Shrink(), VarianceAware()),
        "FGLS": chain(Shrink(), FGLS()),
        "ERMA": chain(Shrink(), ERMA()),
        "ERMA+VA": chain(Shrink(), ERMA(), VarianceAware()),
        "FGLS+VA": chain(Shrink(), FGLS(), VarianceAware()),
        "Joint": chain(Shrink(), joint),
    }
    return policies[name]


def collate(rows: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Stack rows: all that the default collator does here, in a tenth of its time."""
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _train(experiment: Experiment, setting: str, policy: str, seed: int) -> list[float]:
    torch.set_num_threads(1)
    # 60 of 5060 rows are seen late when sampled in proportion; that is part of the experiment.
    warnings.simplefilter("ignore", UnseenDomainWarning)
    # Noise is up to a hundred times apart in variance on purpose, and so are loss weights.
    warnings.simplefilter("ignore", LossWeightWarning)
    return experiment.train(experiment.settings[setting], policy, seed)


def run(
    experiments: list[Experiment], seeds: int, processes: int | None = None
) -> dict[str, Results]:
    """Train every setting with every policy and seed; results by experiment.

    Seeds are those of the data, the initial model and the drawing of rows, and the same for all
    policies, so that policies can be compared seed by seed.
    """
    jobs = [
        (experiment, setting, policy, seed)
        for experiment in experiments
        for setting in experiment.settings
        for policy in NAMES
        for seed in range(seeds)
    ]
    done: dict[tuple[str, str, str, int], list[float]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(_train, *job): (job[0].name, *job[1:]) for job in jobs}
        for future in tqdm(as_completed(waiting), total=len(jobs), unit="run", smoothing=0.0):
            done[waiting[future]] = future.result()
    return {
        e.name: {
            s: {p: np.array([done[e.name, s, p, seed] for seed in range(seeds)]) for p in NAMES}
            for s in e.settings
        }
        for e in experiments
    }


def final(curves: Curves) -> NDArray[np.float64]:
    """Return each seed's mean error over the last quarter of the run.

    The last step alone is a throw of dice, and its luck depends on how much of an epoch is over.
    """
    last: NDArray[np.float64] = curves[:, -max(1, curves.shape[1] // 4) :].mean(axis=1)
    return last


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the median over seeds and its 95 % bootstrap interval."""
    median = float(np.median(values))
    if np.ptp(values) == 0.0:
        return median, median, median
    found = bootstrap(
        (values,), np.median, n_resamples=9999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return median, float(found.low), float(found.high)


def table(results: Results) -> str:
    """Return two tables in Markdown: errors at the end, and their ratios seed by seed.

    Ratios have most of the luck of a seed's data taken out: they show smaller differences.
    """
    ratios = [(f"{policy} / {BASE}", policy, BASE) for policy in NAMES if policy != BASE]
    ratios.append(("Joint / FGLS+VA", "Joint", "FGLS+VA"))
    lines = _header("error, last quarter", results)
    for policy in NAMES:
        lines.append(_line(policy, [final(curves[policy]) for curves in results.values()]))
    lines += ["", *_header("ratio", results)]
    for name, policy, base in ratios:
        values = [final(curves[policy]) / final(curves[base]) for curves in results.values()]
        lines.append(_line(name, values))
    return "\n".join([*lines, ""])


def _header(title: str, results: Results) -> list[str]:
    return [f"| {' | '.join([title, *results])} |", "|---" * (1 + len(results)) + "|"]


def _line(name: str, columns: list[NDArray[np.float64]]) -> str:
    cells = ["{:.3g} ({:.3g} to {:.3g})".format(*interval(values)) for values in columns]
    return f"| {' | '.join([name, *cells])} |"


def draw_figure(experiment: Experiment, results: Results, path: Path) -> None:
    """Plot the median error of every policy along the run, one panel per setting."""
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.9 * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    for axes, (setting, curves) in zip(grid.flat, results.items(), strict=False):
        for policy, errors in curves.items():
            low, median, high = np.quantile(errors, (0.25, 0.5, 0.75), axis=0)
            steps = experiment.every * np.arange(1, len(median) + 1)
            axes.plot(steps, median, color=COLOURS[policy], label=policy, linewidth=1.6)
            axes.fill_between(steps, low, high, color=COLOURS[policy], alpha=0.1, linewidth=0)
        axes.set(title=setting, xlabel="step", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{experiment.error}\n(median, quartiles)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False)
    figure.savefig(path, dpi=160)
    plt.close(figure)
