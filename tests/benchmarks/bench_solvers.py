"""Solvers against SciPy's general ones (same optimum, how much faster) and against a sort.

Run from the repository root: ``python -m tests.benchmarks.bench_solvers``.
"""

from __future__ import annotations

import itertools
import os
import platform
import sys
import timeit
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
from scipy.optimize import minimize

from adaptmix.checks import FloatArray
from adaptmix.solvers import (
    fgls_weights,
    gap_weights,
    joint_weights,
    neyman_counts,
    neyman_shares,
)

K = 100
SAME_OPTIMUM = 1e-8  # SLSQP's own accuracy
SLSQP_AT_LEAST = 100.0
SORTS_AT_MOST = {"neyman_shares": 20.0, "joint_weights": 300.0}


def seconds(*jobs: Callable[[], object], rounds: int = 15) -> list[float]:
    """Return each job's best time; taking turns, so that a busy machine slows all of them alike."""
    timers = [timeit.Timer(job, timer=process_time) for job in jobs]
    numbers = [max(1, int(0.01 / max(timer.timeit(1), 1e-9))) for timer in timers]
    best = [float("inf")] * len(jobs)
    for _ in range(rounds):
        for i, (timer, number) in enumerate(zip(timers, numbers, strict=True)):
            best[i] = min(best[i], timer.timeit(number) / number)
    return best


def slsqp(value: Any, gradient: Any, start: FloatArray, bounds: Any, rows: Any) -> Any:
    """Solve min value(x) with rows @ x = 1 by SciPy's sequential quadratic programming."""
    return minimize(
        value,
        start,
        jac=gradient,
        bounds=bounds,
        constraints=[
            {"type": "eq", "fun": lambda x, r=row: r @ x - 1.0, "jac": lambda _, r=row: r}
            for row in rows
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 2000},
    )


def programs() -> dict[str, tuple[Callable[[], FloatArray], Any, Callable[[], Any]]]:
    """Return name: (our minimiser, the objective, SLSQP's run) for K = 100 domains."""
    rng = np.random.default_rng(0)
    a, noise, n = rng.lognormal(0.0, 1.0, (3, K))
    a /= a.sum()
    mean, variance = rng.lognormal(0.0, 0.3, (2, K))
    pi = rng.dirichlet(np.full(K, 5.0))
    lower, upper, kappa = 0.5 / K, 2.0 / K, 1.0 / 640
    ones, uniform, v = np.ones(K), np.full(K, 1.0 / K), np.sqrt(a)
    strength = v / noise
    strength /= strength.mean()

    def variance_of(p: FloatArray) -> float:
        return float((a**2 / p).sum())

    def estimator(u: FloatArray) -> float:
        return float((u**2 * noise / n).sum())

    def bound(u: FloatArray) -> float:
        return float(((pi - u) @ mean) ** 2 + (u**2 * variance / n).sum())

    def both(x: FloatArray) -> float:
        return float((x[:K] ** 2 * (1 / n + kappa / x[K:])).sum())

    def both_gradient(x: FloatArray) -> FloatArray:
        spread = 1 / n + kappa / x[K:]
        return np.concatenate((2 * x[:K] * spread, -((x[:K] / x[K:]) ** 2) * kappa))

    def joint() -> FloatArray:
        solution = joint_weights(
            a, noise, importance=pi, sizes=n, batch_size=64, horizon=10, lower=lower, upper=upper
        )
        u = pi * solution.loss * v
        return np.concatenate((u / (u @ strength), solution.sampling))

    share = [(lower, upper)] * K
    return {
        "neyman_shares": (
            lambda: neyman_shares(a, lower=lower, upper=upper),
            variance_of,
            lambda: slsqp(variance_of, lambda p: -((a / p) ** 2), uniform, share, [ones]),
        ),
        "fgls_weights": (
            lambda: pi * fgls_weights(noise, importance=pi, sizes=n),
            estimator,
            lambda: slsqp(estimator, lambda u: 2 * u * noise / n, pi, [(0, 1)] * K, [ones]),
        ),
        "gap_weights": (
            lambda: pi * gap_weights(mean, variance, importance=pi, sizes=n, lower=0.2),
            bound,
            lambda: slsqp(
                bound,
                lambda u: 2 * (u * variance / n - ((pi - u) @ mean) * mean),
                pi,
                [(0.2 * x, 1.0) for x in pi],
                [ones],
            ),
        ),
        "joint_weights": (
            joint,
            both,
            lambda: slsqp(
                both,
                both_gradient,
                np.concatenate((uniform / strength, uniform)),
                [(0.0, None)] * K + share,
                [np.concatenate((strength, 0 * ones)), np.concatenate((0 * ones, ones))],
            ),
        ),
    }


def against_slsqp() -> bool:
    print(f"\n### Against SciPy's SLSQP, K = {K}\n")
    print("| solver | time | SLSQP | ratio | value / SLSQP's − 1 | within target |")
    print("|---|---|---|---|---|---|")
    good = True
    for name, (ours, value, theirs) in programs().items():
        fast, slow = seconds(ours)[0], seconds(theirs, rounds=1)[0]
        excess = value(ours()) / theirs().fun - 1.0
        fine = abs(excess) <= SAME_OPTIMUM and slow / fast >= SLSQP_AT_LEAST
        good &= fine
        print(
            f"| {name} | {fast * 1e6:.0f} µs | {slow * 1e3:.0f} ms | {slow / fast:.0f} "
            f"| {excess:.1e} | {'yes' if fine else 'NO'} |"
        )
    return good


def against_enumeration() -> bool:
    print("\n### neyman_counts against every allocation, K = 4, 24 samples, 20 draws\n")
    every = np.array([b for b in itertools.product(range(1, 22), repeat=4) if sum(b) == 24])
    rng = np.random.default_rng(0)
    worst = 0.0
    for a in rng.lognormal(0.0, 1.5, (20, 4)):
        best = (a**2 / every).sum(axis=1).min()
        worst = max(worst, (a**2 / neyman_counts(a, 24)).sum() / best - 1.0)
    print(f"Largest relative excess over the best of {len(every)} allocations: {worst:.1e}.")
    return worst <= 1e-12


def against_sort() -> bool:
    print("\n### In units of numpy.sort of K numbers\n")
    print("| solver | K = 1e3 | 1e4 | 1e5 | 1e6 | target |")
    print("|---|---|---|---|---|---|")
    rows: dict[str, list[float]] = {}
    for size in (10**3, 10**4, 10**5, 10**6):
        rng = np.random.default_rng(size)
        a, noise, n, pi = rng.lognormal(0.0, 2.0, (4, size))
        data: dict[str, Any] = {"importance": pi, "sizes": n}
        share: dict[str, Any] = {"lower": 0.2 / size, "upper": 3.0 / size}
        steps: dict[str, Any] = {"batch_size": 64, "horizon": 100}
        jobs: dict[str, Callable[[], object]] = {
            "numpy.sort, µs": partial(np.sort, a),
            "neyman_shares": partial(neyman_shares, a),
            "neyman_shares, bounds bind": partial(neyman_shares, a, **share),
            "neyman_counts": partial(neyman_counts, a, 10 * size),
            "fgls_weights": partial(fgls_weights, noise, **data),
            "gap_weights": partial(gap_weights, a, noise, **data, lower=0.2),
            "joint_weights": partial(joint_weights, a, noise, **data, **steps, **share),
        }
        times = seconds(*jobs.values(), rounds={10**3: 100, 10**4: 30}.get(size, 5))
        for name, time in zip(jobs, times, strict=True):
            unit = 1e-6 if name.startswith("numpy") else times[0]
            rows.setdefault(name, []).append(time / unit)
    good = True
    for name, ratios in rows.items():
        target = SORTS_AT_MOST.get(name)
        fine = target is None or max(ratios) <= target
        good &= fine
        mark = "–" if target is None else f"≤ {target:.0f}: {'yes' if fine else 'NO'}"
        print(f"| {name} | " + " | ".join(f"{ratio:.1f}" for ratio in ratios) + f" | {mark} |")
    return good


def main() -> int:
    print("## Solvers\n")
    print(
        f"Setup: Python {platform.python_version()}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, {platform.processor() or platform.machine()}, "
        f"load {os.getloadavg()[0]:.1f}, one thread, float64; best of several rounds in turn."
    )
    results = [against_slsqp(), against_enumeration(), against_sort()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
