"""Is "joint" safe where misfit passes for noise, and does it help where labels are wrong?

Three domains that count alike, trained for many passes. Noise comes from rows that the controller
holds out, so that adapting runs train on fewer rows; "proportional" (policy "static") trains on
all of them.

- wrong labels: scikit-learn's digits at three sites with 0, 30 and 70 % random labels; a perceptron
  64-32-10; error on clean test rows.
- noisy targets: regression on 8 inputs, one smooth function for all domains, targets with normal
  noise of .1, 1 and 3; a perceptron 8-32-1; squared error against the function.
- conv net: the same digits, all labels right; upright, turned by 180 degrees, and with pixel noise,
  which a small conv net fits worse; mean test loss over the domains.
- heads: regression on 8 inputs, a trunk of 32 and a linear head for each domain; the domains'
  targets are a smooth function, a rough one, and a step, with the same small noise; mean test
  squared error.
- heads, other units: the same, the third domain's targets times 5.

SGD, batch 32, 600 steps, an update every 5 steps, CPU. Scores are relative to proportional on the
same seed.

Usage: ``python -m tests.benchmarks.bench_joint_bias --runs FOLDER --seeds 0 1 2``, in as many
processes as there are cores, with other ``--seeds`` or ``--tasks`` in each; then the same with
``--table`` in place of ``--seeds``. Results are in results/joint_bias.md.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture, noise, policies
from tests.benchmarks.saved_runs import arguments, fill, found, mean_error

STEPS, BATCH, UPDATE = 600, 32, 5
Data = tuple[Tensor, Tensor]


class Heads(nn.Module):
    """A trunk and one linear head for each of three domains; the last input names the domain."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.trunk(x[:, :8])
        outputs = torch.cat([head(hidden) for head in self.heads], 1)
        return outputs.gather(1, x[:, 8:].long())


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def images(seed: int, *, wrong: bool) -> tuple[list[Data], list[Data]]:
    rng = np.random.default_rng(seed)
    data = load_digits()
    x, y = data.images / 8.0 - 1.0, data.target
    order = rng.permutation(len(y))
    train, test = np.array_split(order[:1350], 3), order[1350:]

    def made(kind: int, rows: Any, *, training: bool) -> Data:
        inputs, labels = x[rows], y[rows]
        if wrong:
            random = rng.random(len(rows)) < (0.0, 0.3, 0.7)[kind] * training
            labels = np.where(random, rng.integers(0, 10, len(rows)), labels)
            inputs = inputs.reshape(len(rows), -1)
        elif kind == 1:
            inputs = inputs[:, ::-1, ::-1].copy()
        elif kind == 2:
            inputs = inputs + rng.standard_normal(inputs.shape)
        return torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)

    parts = [made(kind, rows, training=True) for kind, rows in enumerate(train)]
    return parts, [made(kind, test, training=False) for kind in range(1 if wrong else 3)]


def noisy(seed: int) -> tuple[list[Data], list[Data]]:
    rng = np.random.default_rng(seed)
    slope = rng.standard_normal(8) / np.sqrt(8)

    def made(deviation: float, rows: int) -> Data:
        x = rng.standard_normal((rows, 8))
        y = np.tanh(2.0 * x @ slope) + deviation * rng.standard_normal(rows)
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)

    return [made(deviation, 400) for deviation in (0.1, 1.0, 3.0)], [made(0.0, 1000)]


def regressor() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))


def functions(seed: int, *, scale: float) -> tuple[list[Data], list[Data]]:
    rng = np.random.default_rng(seed)
    slopes = rng.standard_normal((3, 8)) / np.sqrt(8)
    shapes: list[Callable[[Any], Any]] = [np.tanh, lambda z: np.sin(6 * z), np.sign]

    def made(kind: int, rows: int) -> Data:
        x = rng.standard_normal((rows, 8))
        y = shapes[kind](x @ slopes[kind]) + 0.1 * rng.standard_normal(rows)
        y = y * (scale if kind == 2 else 1.0)
        x = np.concatenate([x, np.full((rows, 1), kind)], 1)
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)

    return [made(kind, 400) for kind in range(3)], [made(kind, 1000) for kind in range(3)]


TASKS: dict[str, tuple[Callable[[int], Any], Callable[[], nn.Module], float]] = {
    "wrong labels": (lambda seed: images(seed, wrong=True), perceptron, 0.3),
    "noisy targets": (noisy, regressor, 0.1),
    "conv net": (lambda seed: images(seed, wrong=False), conv, 0.1),
    "heads": (lambda seed: functions(seed, scale=1.0), Heads, 0.1),
    "heads, other units": (lambda seed: functions(seed, scale=5.0), Heads, 0.02),
}
POLICIES: dict[str, Callable[[], Any]] = {
    "proportional": lambda: "static",
    'Joint(bias="ignored")': lambda: policies.Joint(bias="ignored"),
    '"joint"': lambda: "joint",
}


def train(name: str, seed: int, policy: Any) -> tuple[float, Any]:
    """Return the score, less is better, and the loss weights at the end."""
    make, build, rate = TASKS[name]
    parts, tests = make(seed)
    torch.manual_seed(seed)
    net = build()
    mixture = Mixture(
        {letter: TensorDataset(*part) for letter, part in zip("abc", parts, strict=True)},
        importance={"a": 1.0, "b": 1.0, "c": 1.0},
    )
    controller = Controller(mixture, net, policy=policy, seed=seed, update_every=UPDATE)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for step, (x, y) in enumerate(controller.loader(BATCH, steps=STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 2.0 - 2.0 * step / STEPS)
        outputs = net(x)
        if y.is_floating_point():
            losses = (outputs.squeeze(1) - y).square()
            terms: Any = losses
        else:
            losses = F.cross_entropy(outputs, y, reduction="none")
            terms = noise.softmax(outputs, y)
        controller.loss(losses, noise=terms).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    with torch.no_grad():
        scores = []
        for x, y in tests:
            outputs = net(x)
            if y.is_floating_point():
                scores.append(float((outputs.squeeze(1) - y).square().mean()))
            elif name == "wrong labels":
                scores.append(float((outputs.argmax(1) != y).float().mean()))
            else:
                scores.append(float(F.cross_entropy(outputs, y)))
    return float(np.mean(scores)), controller.weights.loss


def run(name: str, seed: int) -> dict[str, Any]:
    """Return the score and the last loss weights of each policy."""
    told = {}
    for policy, make in POLICIES.items():
        score, loss = train(name, seed, make())
        told[policy] = {"score": score, "loss": loss.tolist()}
    return told


def table(name: str, folder: Path) -> None:
    """Print a task's rows of the table."""
    runs = found(folder, name)
    base = np.array([each["proportional"]["score"] for each in runs])
    for policy in POLICIES:
        scores = np.array([each[policy]["score"] for each in runs])
        change = 100.0 * (scores - base) / base.mean()
        told = "–" if policy == "proportional" else f"{mean_error(change, 2)} %"
        loss = ", ".join(f"{w:.2f}" for w in np.mean([each[policy]["loss"] for each in runs], 0))
        print(f"| {name} | {policy} | {mean_error(scores)} | {told} | {loss} | {len(runs)} |")


def main() -> None:
    options = arguments(__doc__, TASKS).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if options.table:
        print(
            "| task | policy | score | change on proportional | loss weights at the end | seeds |"
        )
        print("|---|---|---|---|---|---|")
    for name in options.tasks:
        if options.table:
            table(name, options.runs)
        else:
            fill(options.runs, name, options.seeds, run)


if __name__ == "__main__":
    main()
