"""Do loss weights keep their gains after many epochs, with held-out rows out of the training rows?

The paper's experiments have held-out rows of their own. Here they are taken from the training rows
(``holdout="auto"``), and a few ride in the batch of every tenth step; baselines train on all rows.
Three tasks, all for many epochs:

- **linear**: least squares, 10 dimensions, four domains of 300, 1000, 200 and 2000 rows with input
  variances of 1, 4, 25 and 100 and noise of 5, 1, .5 and 8; 1500 steps of 16 rows, 7 epochs. Step
  sizes are .1 over the curvature of each arm's own objective and fall as 1 / (1 + t / 100).
- **logistic**: 10 dimensions, two domains of 500 rows, of whose labels none or 40 % are flipped;
  1200 steps of 16 rows, 19 epochs.
- **digits**: scikit-learn's, three sites of 400 rows with 0, 30 and 70 % random labels; a network
  with 64 hidden units, AdamW at 2e-3; 1500 steps of 32 rows, 40 epochs. Errors are on right labels.

Arms: proportional sampling without loss weights on all rows; "fgls" without held-out rows, whose
noise is that of the first epoch; "fgls" and "joint" with ``holdout="auto"``; the same with a tenth
of the rows held out; and "fgls" that is told noise of further rows in every tenth step, 500 per
domain (100 of digits), as in the paper: an arm that has more data than the others.

Usage: ``python -m tests.benchmarks.bench_holdout --runs FOLDER --seeds 0 1``, in as many processes
as there are cores, with other ``--seeds`` or ``--tasks`` in each; then the same with ``--table`` in
place of ``--seeds``. Results are in ``results/holdout.md``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture, noise
from adaptmix.errors import AdaptMixWarning
from tests.benchmarks.saved_runs import arguments, fill, found, mean_error

ARMS: dict[str, dict[str, Any]] = {
    "proportional": {"policy": "static"},
    "fgls, first epoch's noise": {"policy": "fgls", "holdout": None},
    "fgls, auto": {"policy": "fgls"},
    "joint, auto": {"policy": "joint"},
    "fgls, a tenth held out": {"policy": "fgls", "holdout": 0.1},
    "joint, a tenth held out": {"policy": "joint", "holdout": 0.1},
    "fgls, further rows": {"policy": "fgls", "holdout": None},
}
FURTHER = "fgls, further rows"
Parts = dict[str, TensorDataset]


@dataclass
class Task:
    """What is trained.

    Attributes:
        parts: training rows by domain.
        further: rows by domain that no arm but one sees.
        model: from inputs to outputs.
        losses: of outputs and targets, (B,).
        terms: noise terms of outputs and targets.
        error: of the model, on rows that nobody trains on.
        optimizer: of the model.
        rate: step size at a step, from the weights in force; None for a constant one.
        batch: rows of a step.
        steps: of the run.
    """

    parts: Parts
    further: Parts
    model: nn.Module
    losses: Callable[[Tensor, Tensor], Tensor]
    terms: Callable[[Tensor, Tensor], noise.NoiseTerms]
    error: Callable[[], float]
    optimizer: torch.optim.Optimizer
    rate: Callable[[int, Any], float] | None
    batch: int
    steps: int


def linear(seed: int) -> Task:
    rng = torch.Generator().manual_seed(seed)
    scale, sd, sizes = (1.0, 4.0, 25.0, 100.0), (5.0, 1.0, 0.5, 8.0), (300, 1000, 200, 2000)
    theta = torch.randn(10, generator=rng)

    def rows(numbers: tuple[int, ...]) -> Parts:
        parts = {}
        for i, number in enumerate(numbers):
            x = scale[i] ** 0.5 * torch.randn(number, 10, generator=rng)
            y = x @ theta + sd[i] * torch.randn(number, generator=rng)
            parts[str(i)] = TensorDataset(x, y[:, None])
        return parts

    parts, further = rows(sizes), rows((500,) * 4)
    model = nn.Linear(10, 1, bias=False)
    nn.init.zeros_(model.weight)
    curvature = np.array(scale)
    total = float(np.array(sizes) / sum(sizes) @ curvature)

    def rate(step: int, weights: Any) -> float:
        return 0.1 / float(weights.importance * weights.loss @ curvature) / (1.0 + step / 100.0)

    return Task(
        parts,
        further,
        model,
        lambda outputs, targets: 0.5 * (outputs - targets).square().squeeze(1),
        noise.squared,
        lambda: total * float((model.weight.detach()[0] - theta).square().sum()),
        torch.optim.SGD(model.parameters(), lr=1.0),
        rate,
        16,
        1500,
    )


def logistic(seed: int) -> Task:
    rng = torch.Generator().manual_seed(seed)
    theta = torch.randn(10, generator=rng)
    theta *= 3.0 / theta.norm()

    def rows(number: int) -> Parts:
        parts = {}
        for name, flipped in (("right", 0.0), ("flipped", 0.4)):
            x = torch.randn(number, 10, generator=rng)
            y = torch.rand(number, generator=rng) < torch.sigmoid(x @ theta)
            parts[name] = TensorDataset(x, (y ^ (torch.rand(number, generator=rng) < flipped)))
        return parts

    parts, further = rows(500), rows(500)
    test = torch.randn(2000, 10, generator=rng)
    chance = torch.sigmoid(test @ theta)
    best = F.binary_cross_entropy_with_logits(test @ theta, chance)
    model = nn.Linear(10, 1, bias=False)
    nn.init.zeros_(model.weight)

    @torch.no_grad()
    def error() -> float:
        logits = model(test).squeeze(1)
        return float(F.binary_cross_entropy_with_logits(logits, chance) - best)

    return Task(
        parts,
        further,
        model,
        lambda z, y: F.binary_cross_entropy_with_logits(z.squeeze(1), y.float(), reduction="none"),
        lambda z, y: noise.softmax(torch.cat([torch.zeros_like(z), z], 1), y.long()),
        error,
        torch.optim.SGD(model.parameters(), lr=1.0),
        lambda step, _: 1.0 / (1.0 + step / 50.0),
        16,
        1200,
    )


def digits(seed: int) -> Task:
    rng = torch.Generator().manual_seed(seed)
    pixels, answers = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 16.0, torch.from_numpy(answers)
    order = torch.randperm(len(y), generator=rng)
    parts, further = Parts(), Parts()
    for name, share in (("clean", 0.0), ("some wrong", 0.3), ("most wrong", 0.7)):
        mine, order = order[:500], order[500:]
        wrong = torch.rand(500, generator=rng) < share
        labels = torch.where(wrong, torch.randint(10, (500,), generator=rng), y[mine])
        parts[name] = TensorDataset(x[mine[:400]], labels[:400])
        further[name] = TensorDataset(x[mine[400:]], labels[400:])
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    @torch.no_grad()
    def error() -> float:
        return float((model(x[order]).argmax(1) != y[order]).float().mean())

    return Task(
        parts,
        further,
        model,
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        noise.softmax,
        error,
        torch.optim.AdamW(model.parameters(), lr=2e-3),
        None,
        32,
        1500,
    )


TASKS: dict[str, Callable[[int], Task]] = {
    "linear": linear,
    "logistic": logistic,
    "digits": digits,
}


def train(name: str, arm: str, seed: int) -> tuple[float, list[float]]:
    """Return the mean error over the last quarter of a run, and the last loss weights."""
    task = TASKS[name](seed)
    mixture = Mixture(task.parts)
    controller = Controller(mixture, task.model, lag=0, seed=seed, **ARMS[arm])
    errors = []
    for (x, y), draw in controller.loader(task.batch, steps=task.steps).with_draws():
        if arm == FURTHER and draw.step % 10 == 0:
            with torch.no_grad():
                for domain, rows in task.further.items():
                    controller.record_noise(
                        task.terms(task.model(rows.tensors[0]), rows.tensors[1]), domain
                    )
        if task.rate is not None:
            task.optimizer.param_groups[0]["lr"] = task.rate(draw.step, controller.weights)
        outputs = task.model(x)
        terms = None if arm == FURTHER else task.terms(outputs.detach(), y)
        controller.loss(task.losses(outputs, y), noise=terms, draw=draw).backward()
        task.optimizer.step()
        task.optimizer.zero_grad()
        controller.step()
        if draw.step >= 0.75 * task.steps and draw.step % 5 == 0:
            errors.append(task.error())
    return float(np.mean(errors)), controller.weights.loss.tolist()


def run(name: str, seed: int) -> dict[str, Any]:
    """Return the error and the last loss weights of each arm."""
    told = {}
    for arm in ARMS:
        error, loss = train(name, arm, seed)
        told[arm] = {"error": error, "loss": loss}
    return told


def table(name: str, folder: Path) -> None:
    """Print a task's rows of the table."""
    runs = found(folder, name)
    base = np.array([each["proportional"]["error"] for each in runs])
    for arm in ARMS:
        errors = np.array([each[arm]["error"] for each in runs])
        change = 100.0 * (errors / base - 1.0)
        weights = np.mean([each[arm]["loss"] for each in runs], axis=0)
        print(
            f"| {name} | {arm} | {mean_error(errors)} | {mean_error(change, 1)} % | "
            f"{' / '.join(f'{w:.2f}' for w in weights)} | {len(runs)} |"
        )


def main() -> None:
    args = arguments(__doc__, TASKS).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AdaptMixWarning)
    if args.table:
        print("| task | arm | error | change against proportional, paired | loss weights | seeds |")
        print("|---|---|---|---|---|---|")
    for name in args.tasks:
        if args.table:
            table(name, args.runs)
        else:
            fill(args.runs, name, args.seeds, run)


if __name__ == "__main__":
    main()
