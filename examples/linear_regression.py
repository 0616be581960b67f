"""The paper's first experiment: least squares on domains of different input scale and noise.

Several domains share one true parameter. Stochastic gradient descent minimises Σ π w L under each
policy; what counts is the excess risk Σ π E[(x·(θ − θ*))²]. Step sizes are inversely proportional
to the curvature Σ π w h of each policy's own objective, so that all go equally fast and differ only
in how noisily they get there. Noise is estimated on a held-out slice of each domain.

Run ``python examples/linear_regression.py --help`` for scales, noise, sizes, steps and seeds.

Source: Salmani et al., Sampling and Loss Weights in Multi-Domain Training, arXiv:2511.06913.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm import tqdm

from adaptmix import Controller, Mixture, noise
from adaptmix.policies import FGLS, Joint, Policy, Static, VarianceAware, chain

mpl.use("Agg")
from matplotlib import pyplot as plt

POLICIES: dict[str, Policy] = {
    "uniform": Static(),
    "VA": VarianceAware(),
    "FGLS": FGLS(),
    "FGLS then VA": chain(FGLS(), VarianceAware()),
    "Joint": Joint(use_sizes=True),
}
COLOURS = dict(zip(POLICIES, ("#777777", "#0072b2", "#e69f00", "#cc79a7", "#009e73"), strict=True))
HELD_OUT = 100


def make_domains(
    theta: Tensor, args: argparse.Namespace, sizes: list[int], rng: torch.Generator
) -> dict[str, TensorDataset]:
    """Return rows (x, y) per domain: x with covariance scale · I, y with noise of its own sd."""
    parts = {}
    for i, size in enumerate(sizes):
        x = args.scale[i] ** 0.5 * torch.randn(size, len(theta), generator=rng, dtype=theta.dtype)
        y = x @ theta + args.noise[i] * torch.randn(size, generator=rng, dtype=theta.dtype)
        parts[str(i)] = TensorDataset(x, y)
    return parts


def train(policy: Policy, args: argparse.Namespace, seed: int) -> tuple[list[float], list[float]]:
    """Return the excess risk after each step, and the gradient variance over uniform's."""
    rng = torch.Generator().manual_seed(seed)
    theta = torch.randn(args.dimension, generator=rng, dtype=torch.float64)
    parts = make_domains(theta, args, args.size, rng)
    held_out = make_domains(theta, args, [HELD_OUT] * len(args.size), rng)
    mixture = Mixture(parts, importance=dict.fromkeys(parts, 1.0))
    curvature = np.array(args.scale)
    model = torch.nn.Linear(args.dimension, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    controller = Controller(mixture, policy=policy, lag=0, seed=seed, half_life=50.0)
    controller.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    risks, ratios = [], []
    for (x, y), draw in controller.loader(args.batch_size, steps=args.steps):
        weights = controller.weights
        signal = float(weights.importance * weights.loss @ curvature)
        optimizer.param_groups[0]["lr"] = args.rate / signal / (1.0 + draw.step / args.decay)
        losses = 0.5 * (model(x).squeeze(1) - y).square()
        controller.loss(losses, draw).backward()
        optimizer.step()
        optimizer.zero_grad()
        if draw.step % 10 == 0:
            with torch.no_grad():
                for name, rows in held_out.items():
                    prediction = model(rows.tensors[0]).squeeze(1)
                    controller.record_noise(noise.squared(prediction, rows.tensors[1]), name)
        controller.step()
        error = float((model.weight.detach()[0] - theta).square().sum())
        risks.append(float(mixture.importance @ curvature) * error)
        scale = weights.importance * weights.loss * args.noise * np.sqrt(curvature)
        quiet = float((scale**2 / weights.sampling).sum() / (scale**2 / mixture.importance).sum())
        ratios.append(quiet)
    return risks, ratios


def draw_figure(curves: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Plot the median and quartiles over seeds of each policy's excess risk."""
    figure, axes = plt.subplots(figsize=(6.0, 3.8), layout="constrained")
    for name, risks in curves.items():
        low, median, high = np.quantile(risks, (0.25, 0.5, 0.75), axis=0)
        steps = np.arange(1, len(median) + 1)
        axes.plot(steps, median, color=COLOURS[name], label=name, linewidth=1.8)
        axes.fill_between(steps, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel="excess risk (median, quartiles)", yscale="log", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--scale", type=float, nargs="+", default=[1.0, 100.0], help="variance of inputs"
    )
    parser.add_argument("--noise", type=float, nargs="+", default=[1.0, 10.0], help="sd of labels")
    parser.add_argument("--size", type=int, nargs="+", default=[5000, 5000], help="training rows")
    parser.add_argument("--dimension", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=0.1, help="first step size × curvature")
    parser.add_argument("--decay", type=float, default=100.0, help="steps that halve the step size")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/linear_regression.png"))
    args = parser.parse_args()
    if not len(args.scale) == len(args.noise) == len(args.size):
        parser.error("--scale, --noise and --size must have one number per domain each")
    torch.set_num_threads(1)
    curves: dict[str, np.ndarray] = {}
    variance: dict[str, float] = {}
    with tqdm(total=len(POLICIES) * args.seeds, unit="run") as progress:
        for name, policy in POLICIES.items():
            results = []
            for seed in range(args.seeds):
                results.append(train(policy, args, seed))
                progress.update()
            curves[name] = np.array([risks for risks, _ in results])
            variance[name] = float(np.median([ratios[-1] for _, ratios in results]))
    print(f"{'policy':<14}{'excess risk':>12}{'quartiles':>24}{'vs uniform':>12}{'variance':>10}")
    base = float(np.median(curves["uniform"][:, -1]))
    for name, risks in curves.items():
        low, median, high = np.quantile(risks[:, -1], (0.25, 0.5, 0.75))
        print(
            f"{name:<14}{median:>12.4g}{f'{low:.4g} to {high:.4g}':>24}"
            f"{median / base:>12.3f}{variance[name]:>10.3f}"
        )
    print("variance: of the gradient, over that of the same objective with equal shares.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    scales, noises = (" and ".join(f"{v:g}" for v in values) for values in (args.scale, args.noise))
    draw_figure(curves, f"input scale {scales}, noise {noises}", args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
