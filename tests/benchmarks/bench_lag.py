"""How far running estimates of gradient variances lag, in units of what the lag costs.

A small language model trains on four domains of different entropy. Every few steps the true
variances within domains are found by exact per-sample gradients of many rows; the running estimate
sees only the rows of the training batches, at the default cadence. The variance ratio is that of
the mixture's gradient under shares by the estimate, over that under shares by the truth: 1.0 when
the estimate is right.

Run ``python -m tests.benchmarks.bench_lag`` from the repository's root; it needs transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings

import numpy as np
import torch
from torch import nn

from adaptmix._checks import FloatArray
from adaptmix.probe import GradientProbe
from adaptmix.statistics._running import RunningStatistics
from tests.benchmarks.workloads import DOMAINS, WORKLOADS, Workload, bigrams, gpt2, token_losses

SMALL = Workload(lambda: gpt2(2, 64, 2, 512, 48), bigrams(512, 48), token_losses, 16, lr=3e-3)


def observe(
    workload: Workload, model: nn.Module, estimator: str, seed: int, *, step: int, size: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Counts, squares and Gram matrix of one batch; the gradients stay on the parameters."""
    drawn = dataclasses.replace(workload, size=size)
    domains, (inputs, targets) = drawn.draw(seed)
    probe = GradientProbe(model, DOMAINS, estimator=estimator)
    probe.attach()
    probe.arm(True, step=step)
    loss = workload.losses(model, inputs, targets).mean()
    probe.expect(domains, torch.full((size,), 1.0 / size), loss)
    loss.backward()
    sums = probe.collect()
    probe.detach()
    assert sums is not None
    return sums.count.numpy(), sums.square.numpy(), sums.gram().numpy()


def variance_ratio(estimate: FloatArray, truth: FloatArray) -> float:
    """Of shares in proportion to ``estimate``, both standard deviations, with equal importance."""
    shares = estimate / estimate.sum()
    return float((truth**2 / shares).sum() / truth.sum() ** 2)


def follow(
    workload: Workload, seed: int, *, steps: int, every: int, half_life: float, estimator: str
) -> list[tuple[int, float, float]]:
    """(step, variance ratio by the estimate, by equal shares) every 20 steps."""
    torch.manual_seed(seed)
    model = workload.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.lr)
    running = RunningStatistics(DOMAINS, half_life=half_life, gram=True)
    rows = []
    for step in range(steps):
        batch = seed * 10**6 + step
        if (step + 1) % every == 0:
            seen = observe(workload, model, estimator, batch, step=step, size=workload.size)
            running.add_gradients(step + 1, count=seen[0], square=seen[1], products=seen[2])
        else:
            _, (inputs, targets) = workload.draw(batch)
            workload.losses(model, inputs, targets).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            many = observe(workload, model, "exact", batch + 10**9, step=0, size=128)
            optimizer.zero_grad()
            truth = np.sqrt((many[1] - np.diagonal(many[2]) / many[0]) / (many[0] - 1.0))
            grad_var = running.snapshot(step + 1, lengths=np.ones(DOMAINS)).grad_var
            assert grad_var is not None
            ratio = variance_ratio(np.sqrt(grad_var), truth)
            rows.append((step + 1, ratio, variance_ratio(np.ones(DOMAINS), truth)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Lag of running gradient variances.")
    parser.add_argument("--model", default="small", choices=["small", *WORKLOADS])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    workload = SMALL if args.model == "small" else WORKLOADS[args.model]
    print(f"{args.model}, {args.steps} steps, {args.seeds} seeds, after {args.warm_up} steps")
    print("| estimator | every | half-life | variance ratio, median / 90 % / max | equal shares |")
    print("|---|---|---|---|---|")
    for estimator, every, half_life in (
        ("sketch", 10, 50.0),
        ("exact", 10, 50.0),
        ("norm", 10, 50.0),
        ("sketch", 5, 50.0),
        ("sketch", 20, 50.0),
        ("sketch", 10, 25.0),
        ("sketch", 10, 100.0),
    ):
        found = [
            row
            for seed in range(args.seeds)
            for row in follow(
                workload,
                seed,
                steps=args.steps,
                every=every,
                half_life=half_life,
                estimator=estimator,
            )
            if row[0] > args.warm_up
        ]
        ratios = np.array([row[1] for row in found])
        quantiles = " / ".join(f"{q:.3f}" for q in np.quantile(ratios, (0.5, 0.9, 1.0)))
        equal = np.mean([row[2] for row in found])
        print(
            f"| {estimator} | {every} | {half_life:.0f} | {quantiles} | {equal:.3f} |", flush=True
        )


if __name__ == "__main__":
    main()
