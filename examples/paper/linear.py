"""Linear regression: domains of different input scale, noise and size share one true parameter.

What counts is the excess risk Σ π E[(x·(θ − θ*))²]. Step sizes are inversely proportional to the
curvature Σ π w h of each policy's own objective, so that all go equally fast and differ only in how
noisily they get there. Joint takes sizes and horizon into account here (``use_sizes=True``),
because the domains share their optimum, as its theory asks.

Run ``python examples/paper/linear.py --help`` for domains, sizes and seeds of your own.

Source: Salmani et al., Sampling and Loss Weights in Multi-Domain Training, arXiv:2511.06913.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import Experiment, collate, draw_figure, make_policy, run, table
from torch import Tensor
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture, noise
from adaptmix.policies import Joint

DIMENSION = 10
BATCH = 16
HELD_OUT = 500
# First step size times curvature, and the steps that halve it. With 0.3 the few rows that a steep
# domain has in a batch make multiplicative noise, which no policy models.
RATE, DECAY = 0.1, 100.0


@dataclass(frozen=True)
class Setting:
    """Domains by their variance of inputs, standard deviation of labels and training rows."""

    scale: tuple[float, ...]
    noise: tuple[float, ...]
    sizes: tuple[int, ...]
    steps: int = 200


def averaged_steps(steps: int) -> float:
    """Return how many steps' gradients the last parameters average.

    Step t's gradient enters them with weight r_t Π_{s>t} (1 − r_s), r being step size times
    curvature; as many equal weights have the same sum of squares. This is Joint's horizon: all
    steps of the run would count only if step sizes fell as 1 / t from the first.
    """
    rates = RATE / (1.0 + np.arange(steps) / DECAY)
    weights = rates * np.append(np.cumprod(1.0 - rates[:0:-1])[::-1], 1.0)
    return float(weights.sum() ** 2 / (weights**2).sum())


def make_domains(
    setting: Setting, theta: Tensor, sizes: tuple[int, ...], rng: torch.Generator
) -> dict[str, TensorDataset]:
    """Return rows (x, y) per domain: x with covariance scale · I, y with noise of its own sd."""
    parts = {}
    for i, size in enumerate(sizes):
        x = setting.scale[i] ** 0.5 * torch.randn(size, DIMENSION, generator=rng)
        y = x @ theta + setting.noise[i] * torch.randn(size, generator=rng)
        parts[str(i)] = TensorDataset(x, y)
    return parts


def train(setting: Setting, policy: str, seed: int) -> list[float]:
    """Return the excess risk after each step."""
    rng = torch.Generator().manual_seed(seed)
    theta = torch.randn(DIMENSION, generator=rng)
    mixture = Mixture(make_domains(setting, theta, setting.sizes, rng))
    held_out = make_domains(setting, theta, (HELD_OUT,) * len(setting.sizes), rng)
    curvature = np.array(setting.scale)
    model = torch.nn.Linear(DIMENSION, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    joint = Joint(bias="ignored", use_sizes=True, horizon=round(averaged_steps(setting.steps)))
    controller = Controller(
        mixture,
        policy=make_policy(policy, mixture, joint),
        measure_every=5,
        estimator="exact",
        lag=0,
        seed=seed,
        holdout=None,
    )
    controller.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    risks = []

    def record_noise() -> None:
        with torch.no_grad():
            for name, rows in held_out.items():
                predictions = model(rows.tensors[0]).squeeze(1)
                controller.record_noise(noise.squared(predictions, rows.tensors[1]), name)

    record_noise()
    loader = controller.loader(BATCH, steps=setting.steps, collate_fn=collate)
    for (x, y), draw in loader.with_draws():
        weights = controller.weights
        signal = float(weights.importance * weights.loss @ curvature)
        optimizer.param_groups[0]["lr"] = RATE / signal / (1.0 + draw.step / DECAY)
        losses = 0.5 * (model(x).squeeze(1) - y).square()
        controller.loss(losses, draw=draw).backward()
        optimizer.step()
        optimizer.zero_grad()
        if draw.step % 10 == 0:
            record_noise()
        controller.step()
        error = float((model.weight.detach()[0] - theta).square().sum())
        risks.append(float(mixture.importance @ curvature) * error)
    return risks


EXPERIMENT = Experiment(
    name="linear",
    error="excess risk",
    settings={
        "alike": Setting((1, 1), (1, 1), (500, 500)),
        "noise 1, 10": Setting((1, 1), (1, 10), (500, 500)),
        "scale 1, 100": Setting((1, 100), (1, 1), (500, 500)),
        "steep is noisy": Setting((1, 100), (1, 10), (500, 500)),
        "steep is clean": Setting((1, 100), (10, 1), (500, 500)),
        "steep is noisy, 60 and 5000 rows": Setting((1, 100), (1, 10), (60, 5000)),
        "steep is noisy, 5000 and 60 rows": Setting((1, 100), (1, 10), (5000, 60)),
        "four domains": Setting((1, 4, 25, 100), (5, 1, 0.5, 8), (300, 1000, 200, 2000), 300),
    },
    train=train,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Least squares on domains of one's own.")
    parser.add_argument(
        "--scale", type=float, nargs="+", default=[1.0, 100.0], help="variance of inputs"
    )
    parser.add_argument("--noise", type=float, nargs="+", default=[1.0, 10.0], help="sd of labels")
    parser.add_argument("--size", type=int, nargs="+", default=[500, 500], help="training rows")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/linear.png"))
    args = parser.parse_args()
    if not len(args.scale) == len(args.noise) == len(args.size):
        parser.error("--scale, --noise and --size must have one number per domain each")
    scale, noise, size = (
        ",".join(f"{v:g}" for v in vars(args)[k]) for k in ("scale", "noise", "size")
    )
    setting = Setting(tuple(args.scale), tuple(args.noise), tuple(args.size), args.steps)
    name = f"scale {scale} noise {noise} size {size}"
    experiment = replace(EXPERIMENT, settings={name: setting})
    results = run([experiment], args.seeds)["linear"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_figure(experiment, results, args.out)
    print(f"{table(results)}\npicture: {args.out}")


if __name__ == "__main__":
    main()
