"""What estimation noise costs, which transforms buy it back, and how long an update takes.

Two simulations of what a controller lives with, averaged over 300 steps and 20 seeds.

Sampling: deviations v_i that drift over hundreds of steps, per-sample gradients seen every 10 steps
and only of the rows that the shares in force have drawn, running estimates that forget, shares that
come into force 16 steps late. Excess: gradient variance under the shares in force over that of the
best shares for the *true* v_i, less 1; over batches of 16 and 64, K = 2, 5, 10, 50, and
half-lives of 20, 50, 100.

Loss weights: residual noise σ_i² estimated from every row trained on, with a half-life of 50 steps.
Excess: variance of the estimator Σ π² w² σ² / n, n ∝ π, over that with the true σ_i², less 1.

Found: mean (largest) regret in %, that is, the excess less that of the best row in its setting:

    Shrink(…)    0           1           2          4         5         6         8
    shares       28.6 (257)  3.2 (38)    1.4 (22)   0.9 (12)  1.2 (19)  1.4 (27)  2.3 (41)
    loss weights 73.8 (1533) 25.4 (779)  7.2 (224)  1.2 (31)  0.7 (12)  0.5 (5)   0.6 (9)

    shares, Shrink(5) with   Smooth(0.5) 1.3 (21), Smooth(0.25) 2.3 (27), WarmUp(5) 4.0 (32),
                             TrustRegion(0.1) 1.1 (20), TrustRegion(0.01) 1.6 (21)
    shares, without Shrink   Smooth(0.5) 22.9 (200), Smooth(0.25) 14.6 (149)

Where domains are equal, Shrink(5) cuts the mean harm from 13.8 to 0.0 (shares) and from 14.7 to
0.0 (loss weights); with heavy tails, where an estimate is worth a third of its samples, from 46 to
0.5 and from 99 to 0.6. Hence the defaults Shrink(5), between what is best for either weights,
Smooth(0.5), TrustRegion(0.01), and Shrink in NAMED.

Measuring every 20 steps from step 200 on, in place of every 10, adds to the excess of shares where
domains are different 2.6 points of 9.6 (13.8 of 32.3 with heavy tails), and 3.1 with a half-life of
100. Hence the same cadence throughout.

Run from the repository root ``python -m tests.benchmarks.bench_policies``, with any of shares,
cadence, loss and time for a part of it.
"""

from __future__ import annotations

import itertools
import os
import platform
import sys
import timeit
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from adaptmix import Domains, DomainStats, Weights
from adaptmix.data._rounding import systematic_counts
from adaptmix.monitoring._efficiency import variance_ratio
from adaptmix.policies import (
    ERMA,
    FGLS,
    Joint,
    Policy,
    Run,
    Shrink,
    Smooth,
    TrustRegion,
    VarianceAware,
    WarmUp,
    chain,
)
from adaptmix.policies._base import started
from adaptmix.statistics._running import RunningStatistics

STEPS, EVERY, LAG, SEEDS = 300, 10, 16, 20
BATCHES, DOMAINS, HALF_LIVES = (16, 64), (2, 5, 10, 50), (20.0, 50.0, 100.0)
MICROSECONDS = {10: 200.0, 10_000: 20_000.0}


Cell = tuple["World", int, int, float]
Measure = Callable[[Policy, "World", int, int, float, int], float]


@dataclass(frozen=True)
class World:
    """Truth: log v_i has this spread, and ‖∇ℓ‖² is chi-square with so many degrees of freedom.

    A third of a degree has a relative variance of 6 per sample: heavy tails.
    """

    name: str
    spread: float
    freedom: float


WORLDS = (
    World("equal", 0.0, 1.0),
    World("equal, heavy tails", 0.0, 1 / 3),
    World("alike", 0.3, 1.0),
    World("different", 1.0, 1.0),
    World("different, heavy tails", 1.0, 1 / 3),
)

SAMPLES = (0, 1, 2, 4, 5, 6, 8)
VA = VarianceAware()
SHARES: dict[str, Policy] = {
    **{f"Shrink({s})": chain(Shrink(s), VA) for s in SAMPLES},
    **{
        f"Shrink({s}), Smooth({r})": chain(Shrink(s), VA, Smooth(r))
        for s in (0, 5)
        for r in (0.5, 0.25)
    },
    **{
        f"Shrink(5), TrustRegion({limit})": chain(Shrink(5), VA, TrustRegion(limit))
        for limit in (0.1, 0.01)
    },
    "Shrink(5), WarmUp(5)": chain(Shrink(5), VA, WarmUp(5)),
}
DEFAULT = SHARES["Shrink(5)"]
CADENCES: dict[str, Callable[[int], bool]] = {
    "10 steps": lambda _: True,
    "10 steps, and 20 from step 200 on": lambda step: step <= 200 or step % 20 == 0,
    "20 steps": lambda step: step % 20 == 0,
    "40 steps": lambda step: step % 40 == 0,
}
FEW_SEEDS = 6
LOSS: dict[str, Policy] = {f"Shrink({s})": chain(Shrink(s), FGLS()) for s in SAMPLES}


def shares_excess(
    policy: Policy,
    world: World,
    batch: int,
    K: int,
    half_life: float,
    seed: int,
    *,
    observed: Callable[[int], bool] | None = None,
    steps: int = STEPS,
) -> float:
    """Return the mean excess variance of the gradient in one run, over its last 300 steps."""
    rng = np.random.default_rng([seed, K, batch])
    info = Domains([str(i) for i in range(K)], np.ones(K), rng.dirichlet(np.full(K, 4.0)))
    start = world.spread * rng.standard_normal(K)
    drift = world.spread * rng.standard_normal(K) / 400.0 - 1.0 / 600.0
    running = RunningStatistics(K, half_life=half_life)
    state = started(policy, info, Run(batch, steps)).state
    objective = Weights.proportional(info.importance)
    published = [(0, info.importance)]
    total = 0.0
    for step in range(EVERY, steps + 1, EVERY):
        in_force = [shares for since, shares in published if since <= step][-1]
        variance = np.exp(2.0 * (start + drift * step))
        if step > steps - STEPS:
            truth = DomainStats(grad_var=variance)
            total += variance_ratio(in_force, objective, truth, rows=batch) - 1.0
        if observed is not None and not observed(step):
            continue
        count = systematic_counts(batch * in_force, rng.random()).astype(np.float64)
        shape = np.maximum(count - 1.0, 0.0) * world.freedom / 2.0
        scatter = variance * rng.gamma(np.maximum(shape, 1e-9), 2.0 / world.freedom)
        scatter = np.where(count > 1.0, scatter, 0.0)
        mean_sq = variance * rng.gamma(world.freedom / 2.0, 2.0 / world.freedom, K)  # ‖Σ ∇ℓ‖² / n
        own = np.where(count > 0.0, mean_sq, 0.0)
        running.add_gradients(step, count=count, square=scatter + own, products=own * count)
        stats = running.snapshot(step, lengths=np.ones(K))
        if "grad_var" in stats.supplied():
            weights, state = policy.update(stats, state)
            published.append((step + LAG, weights.sampling))
    return total * EVERY / STEPS


def estimator_excess(
    policy: Policy, world: World, batch: int, K: int, half_life: float, seed: int
) -> float:
    """Return the mean excess variance of the weighted estimator in one run."""
    rng = np.random.default_rng([seed, K, batch])
    info = Domains([str(i) for i in range(K)], np.ones(K), rng.dirichlet(np.full(K, 4.0)))
    noise = np.exp(world.spread * rng.standard_normal(K))
    least = 1.0 / float((info.importance / noise).sum())
    running = RunningStatistics(K, half_life=half_life)
    state = started(policy, info, Run(64, 100)).state
    total = 0.0
    for step in range(EVERY, STEPS + 1, EVERY):
        expected = EVERY * batch * info.importance
        count = systematic_counts(expected, rng.random()).astype(np.float64)
        shape = np.maximum(count, 1e-9) * world.freedom / 2.0
        residual = np.where(count > 0.0, noise * rng.gamma(shape, 2.0 / world.freedom), 0.0)
        rows = np.maximum(count, 1e-9)
        square = residual**2 / rows * (1.0 + 2.0 / world.freedom)
        running.add_noise(step, residual, count, count, square, residual, count)
        running.seen = running.seen + count
        weights, state = policy.update(running.snapshot(step, lengths=np.ones(K)), state)
        u = info.importance * weights.loss
        total += float((u**2 * noise / info.importance).sum()) / least - 1.0
    return total * EVERY / STEPS


def row(run: Measure, policies: list[Policy], cell: Cell) -> list[float]:
    """Return every policy's mean excess over the seeds, in %."""
    return [
        100.0 * float(np.mean([run(policy, *cell, seed) for seed in range(SEEDS)]))
        for policy in policies
    ]


def measure(
    title: str, run: Measure, policies: dict[str, Policy], half_lives: Sequence[float]
) -> None:
    """Print each policy's mean (largest) excess over the settings of each world, and its regret."""
    cells = list(itertools.product(WORLDS, BATCHES, DOMAINS, half_lives))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        table = np.array(list(pool.map(partial(row, run, list(policies.values())), cells)))
    regret = table - table.min(axis=1, keepdims=True)
    print(f"\n### {title}: excess variance in %, mean (largest) over {len(cells)} settings\n")
    names = [world.name for world in WORLDS]
    print("| transforms | " + " | ".join(names) + " | regret |")
    print("|---|" + "---|" * (len(names) + 1))
    for j, name in enumerate(policies):
        columns = [table[[cell[0] is world for cell in cells], j] for world in WORLDS]
        texts = [f"{c.mean():.1f} ({c.max():.0f})" for c in (*columns, regret[:, j])]
        print(f"| {name} | " + " | ".join(texts) + " |", flush=True)


def cadences() -> None:
    """Print what measuring more seldom costs in the second half of 600 steps."""
    cells: list[Cell] = list(itertools.product(WORLDS, BATCHES, DOMAINS[:3], HALF_LIVES[1:]))
    print("\n### Measured steps: excess variance of the gradient in %, by half-life\n")
    print("| measured every | " + " | ".join(world.name for world in WORLDS) + " |")
    print("|---|" + "---|" * len(WORLDS))
    for name, observed in CADENCES.items():
        excess = [
            np.mean(
                [
                    shares_excess(DEFAULT, *cell, seed, observed=observed, steps=2 * STEPS)
                    for seed in range(FEW_SEEDS)
                ]
            )
            for cell in cells
        ]
        texts = []
        for world in WORLDS:
            both = [
                100.0
                * np.mean(
                    [
                        e
                        for cell, e in zip(cells, excess, strict=True)
                        if cell[0] is world and cell[3] == h
                    ]
                )
                for h in HALF_LIVES[1:]
            ]
            texts.append(", ".join(f"{value:.1f}" for value in both))
        print(f"| {name} | " + " | ".join(texts) + " |", flush=True)


def statistics(K: int, rng: np.random.Generator) -> DomainStats:
    names = ("loss_mean", "loss_var", "noise", "grad_var", "grad_sq")
    return DomainStats(
        count=rng.integers(1, 100, K),
        seen=rng.integers(1, 1000, K),
        **dict(zip(names, rng.lognormal(0.0, 1.0, (5, K)), strict=True)),
    )


def seconds(policy: Policy, K: int) -> float:
    """Return the best time of an update, with statistics that change from one to the next."""
    rng = np.random.default_rng(K)
    info = Domains([str(i) for i in range(K)], np.ones(K), rng.dirichlet(np.full(K, 5.0)))
    both = [statistics(K, rng) for _ in range(2)]
    state = started(policy, info, Run(64, 100)).state

    def job() -> None:
        nonlocal state
        for stats in both:
            _, state = policy.update(stats, state)

    number = max(1, int(0.02 / timeit.timeit(job, number=1)))
    times = timeit.repeat(job, number=number, repeat=25, timer=process_time)
    return min(times) / number / 2.0


def time() -> bool:
    policies: dict[str, Callable[[], Policy]] = {
        "VarianceAware": VarianceAware,
        "FGLS": FGLS,
        "ERMA": ERMA,
        "ERMA(exact=True)": lambda: ERMA(exact=True),
        "Joint": Joint,
        "Joint(use_sizes=True)": lambda: Joint(bias="ignored", use_sizes=True),
        "Shrink, VarianceAware": lambda: chain(Shrink(), VarianceAware()),
        "Shrink, Joint": lambda: chain(Shrink(), Joint(bias="ignored")),
        "Shrink, Joint, Smooth": lambda: chain(Shrink(), Joint(bias="ignored"), Smooth()),
        "Shrink, Joint, TrustRegion": lambda: chain(
            Shrink(), Joint(bias="ignored"), TrustRegion(1e-3)
        ),
    }
    print("\n### One policy.update, µs\n")
    print("| policy | " + " | ".join(f"K = {K}" for K in MICROSECONDS) + " | within target |")
    print("|---|---|---|---|")
    good = True
    for name, make in policies.items():
        times = [seconds(make(), K) * 1e6 for K in MICROSECONDS]
        fine = all(t <= target for t, target in zip(times, MICROSECONDS.values(), strict=True))
        good &= fine
        print(
            f"| {name} | {times[0]:.0f} | {times[1]:.0f} | {'yes' if fine else 'NO'} |", flush=True
        )
    timed = timeit.repeat(lambda: np.where(True, 1.0, 2.0), number=1000, timer=process_time)
    calibration = min(timed)
    print(f"\nFor scale: one np.where of scalars takes {calibration * 1e3:.1f} µs here and now.")
    return good


def main() -> int:
    parts = sys.argv[1:] or ["shares", "loss", "time"]
    print("## Policies\n")
    print(
        f"Setup: Python {platform.python_version()}, NumPy {np.__version__}, "
        f"{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}, one thread."
    )
    if "shares" in parts:
        measure("Shares of VarianceAware", shares_excess, SHARES, HALF_LIVES)
    if "cadence" in parts:
        cadences()
    if "loss" in parts:
        measure("Loss weights of FGLS", estimator_excess, LOSS, HALF_LIVES[1:2])
    return 0 if "time" not in parts or time() else 1


if __name__ == "__main__":
    sys.exit(main())
