"""The guide's picture of "transfer": weights along runs with few and many rows of the target.

Linear regression with 8 inputs and noise of 1. Optima lie 0.3 and 2 from the target's, whose length
is 1; both auxiliary domains have 1 000 rows. SGD at 0.02, batch 32, an update every 5 steps; the
mean of five seeds and their range.

Usage: ``python -m tests.benchmarks.plot_transfer examples/pictures/transfer.png``.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture

STEPS, SEEDS, ROWS = 400, 5, (20, 200, 2000)
NAMES = ("target", "near", "far")
COLOURS = ("#0f6fb8", "#2a9d6f", "#c4532d")


def weights(rows: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return (steps, 3) weights of the objective."""
    rng = np.random.default_rng(seed)
    optimum = rng.standard_normal(8)
    optimum /= np.linalg.norm(optimum)
    parts = {}
    for name, number, distance in zip(NAMES, (rows, 1000, 1000), (0.0, 0.3, 2.0), strict=True):
        away = rng.standard_normal(8)
        x = rng.standard_normal((number, 8))
        y = x @ (optimum + distance * away / np.linalg.norm(away)) + rng.standard_normal(number)
        parts[name] = TensorDataset(*(torch.tensor(part, dtype=torch.float32) for part in (x, y)))
    mixture = Mixture(parts, importance={"target": 1.0, "near": 0.0, "far": 0.0})
    torch.manual_seed(seed)
    net = nn.Linear(8, 1)
    controller = Controller(mixture, net, policy="transfer", update_every=5, seed=seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    found = []
    for x, y in controller.loader(32, steps=STEPS):
        controller.loss((net(x).squeeze(1) - y).square()).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        found.append(controller.weights.objective)
    return np.array(found)


def main(target: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    figure, panels = plt.subplots(1, len(ROWS), figsize=(9, 2.9), sharey=True, layout="tight")
    for axes, rows in zip(panels, ROWS, strict=True):
        runs = np.array([weights(rows, seed) for seed in range(SEEDS)])
        steps = np.arange(STEPS)
        for k, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
            axes.fill_between(
                steps, runs[:, :, k].min(0), runs[:, :, k].max(0), color=colour, alpha=0.15, lw=0
            )
            axes.plot(steps, runs[:, :, k].mean(0), color=colour, label=name)
        axes.set_title(f"{rows} rows of the target", fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("weight in the objective")
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1])
