"""Do held-out rows that ride in batches tell which domain helps a target, where training rows lie?

A model has fitted its training rows, so the target's mean gradient over these is too small, and its
inner products with other domains' are, too. Held-out rows are unbiased, but few of them ride: two
in every tenth step here, a sixteenth of 32 rows. Digits; the target has right labels, "wrong" 400
rows of which 30 % have random labels, and "permuted" 400 rows whose labels are permuted. A network
with 64 hidden units, AdamW at 2e-3; a step has 16 rows of the target and 8 of each other. Gradients
are exact. Each estimate of ⟨μ_i, μ_target⟩ is the mean over measured steps with a half-life of 50
steps, and is divided by the true ‖μ_i‖ ‖μ_target‖ at its end: it is an estimate of the cosine. The
truth is of some 500 rows that nobody trains on. Root mean squared errors over seeds, and means:
"train" is of the batch's rows, "ride" of held-out ones, a quarter of the target's rows but 16 at
least.

8 seeds, torch 2.13, CPU; estimates are "mean, root mean squared error":

| target rows | step | domain | true cosine | train | ride |
|---|---|---|---|---|---|
| 30 | 100 | wrong | +0.81 | -0.20, 1.18 | +1.04, 1.35 |
| 30 | 600 | wrong | +0.78 | +0.08, 0.71 | -0.22, 1.37 |
| 30 | 600 | permuted | -0.26 | -0.11, 0.22 | +0.10, 1.72 |
| 60 | 100 | wrong | +0.73 | -0.02, 0.87 | +0.54, 1.84 |
| 60 | 600 | wrong | +0.69 | +0.02, 0.69 | -0.55, 1.83 |
| 60 | 600 | permuted | -0.39 | -0.32, 0.34 | +0.01, 0.80 |
| 400 | 100 | wrong | +0.71 | +0.52, 0.71 | +1.06, 2.54 |
| 400 | 600 | wrong | +0.41 | +0.81, 0.93 | +0.20, 2.25 |
| 400 | 600 | permuted | -0.58 | -0.45, 0.59 | -0.69, 1.01 |

So training rows do lie, where the target is small: they see nothing of the help that a cosine of .7
stands for. But so few held-out rows say less still: in all 18 rows of the table their error is the
larger one, 1.1 to 7.8 times, 2.5 in the median. AdaptMix therefore has no gradients of held-out
rows, and its Gram matrix is that of training rows.

Usage: ``nice -n 15 python -m tests.benchmarks.bench_target_gram --seeds 8``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

EVERY, HALF_LIFE, RIDING = 10, 50.0, 2
AT = (100, 300, 600)
AUXILIARY = ("wrong", "permuted")


def gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(model(inputs), labels)
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts]).double()


def run(number: int, seed: int) -> Iterator[tuple[int, list[list[float]]]]:
    """Yield steps and, of each auxiliary domain, the true cosine and both estimates of it."""
    pixels, answers = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 16.0, torch.from_numpy(answers)
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=rng)
    target, wrong, permuted, test = order.split([number, 400, 400, len(y) - number - 800])
    test = test[:500]
    apart, trained = target.split([max(16, number // 4), number - max(16, number // 4)])
    labels = y.clone()
    random = wrong[torch.rand(400, generator=rng) < 0.3]
    labels[random] = torch.randint(10, (len(random),), generator=rng)
    labels[permuted] = torch.randperm(10, generator=rng)[y[permuted]]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    sums, weight, ridden = np.zeros((2, 2)), 0.0, 0

    def of(rows: Tensor) -> Tensor:
        return gradient(model, x[rows], labels[rows])

    for step in range(1, max(AT) + 1):
        batch = [
            rows[torch.randint(len(rows), (size,), generator=rng)]
            for rows, size in ((trained, 16), (wrong, 8), (permuted, 8))
        ]
        if step % EVERY == 0:
            riding = apart[torch.arange(ridden, ridden + RIDING) % len(apart)]
            ridden += RIDING
            keep = 0.5 ** (EVERY / HALF_LIFE)
            own, held = of(batch[0]), of(riding)
            products = [[float(of(rows) @ g) for g in (own, held)] for rows in batch[1:]]
            sums, weight = keep * sums + np.array(products), keep * weight + 1.0
        if step in AT:
            true, others = of(test), [of(wrong), of(permuted)]
            norms = [float(g.norm() * true.norm()) for g in others]
            yield (
                step,
                [
                    [float(g @ true) / norm, *(sums[i] / weight / norm)]
                    for i, (g, norm) in enumerate(zip(others, norms, strict=True))
                ],
            )
        optimizer.zero_grad()
        rows = torch.cat(batch)
        F.cross_entropy(model(x[rows]), labels[rows]).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| target rows | step | domain | true cosine | train: mean, error | ride: mean, error |")
    print("|---|---|---|---|---|---|")
    for number in (30, 60, 400):
        found = [dict(run(number, seed)) for seed in range(args.seeds)]
        for step in AT:
            table = np.array([each[step] for each in found])
            for i, name in enumerate(AUXILIARY):
                true, train, ride = table[:, i].T
                cells = [
                    f"{estimate.mean():+.2f}, {np.sqrt(np.mean((estimate - true) ** 2)):.2f}"
                    for estimate in (train, ride)
                ]
                row = f"| {number} | {step} | {name} | {true.mean():+.2f} | {' | '.join(cells)} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
