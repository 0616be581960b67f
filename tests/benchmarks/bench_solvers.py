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
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
from scipy.optimize import Bounds, LinearConstraint, minimize

from adaptmix._checks import FloatArray
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
PATIENCE = 20.0  # seconds for a run of trust-constr
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


@dataclass(frozen=True)
class Program:
    """Minimise value(x) with rows @ x = 1 within bounds, from a start; and our minimiser."""

    ours: Callable[[], FloatArray]
    value: Callable[[FloatArray], float]
    gradient: Callable[[FloatArray], FloatArray]
    start: FloatArray
    bounds: Bounds
    rows: FloatArray

    def slsqp(self) -> Any:
        """SciPy's sequential quadratic programming."""
        return minimize(
            self.value,
            self.start,
            jac=self.gradient,
            bounds=self.bounds,
            constraints={
                "type": "eq",
                "fun": lambda x: self.rows @ x - 1.0,
                "jac": lambda _: self.rows,
            },
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 2000},
        )

    def trust_constr(self) -> Any:
        """SciPy's interior points in a trust region, until they settle or their time is up."""
        until = process_time() + PATIENCE
        return minimize(
            self.value,
            self.start,
            jac=self.gradient,
            bounds=self.bounds,
            constraints=LinearConstraint(self.rows, 1.0, 1.0),
            method="trust-constr",
            callback=lambda *_: process_time() > until,
            options={"gtol": 1e-12, "xtol": 1e-14, "barrier_tol": 1e-14, "maxiter": 5000},
        )


def programs() -> dict[str, Program]:
    """Return the solvers' programs for K = 100 domains, written out."""
    rng = np.random.default_rng(0)
    a, noise, n = rng.lognormal(0.0, 1.0, (3, K))
    a /= a.sum()
    mean, variance = rng.lognormal(0.0, 0.3, (2, K))
    pi = rng.dirichlet(np.full(K, 5.0))
    lower, upper, kappa = 0.5 / K, 2.0 / K, 1.0 / 640
    one, zero, v = np.ones(K), np.zeros(K), np.sqrt(a)
    within = partial(Bounds, keep_feasible=True)
    strength = v / noise
    strength /= strength.mean()

    def joint() -> FloatArray:
        solution = joint_weights(
            a, noise, importance=pi, sizes=n, draws=640, share_bounds=(lower, upper)
        )
        u = pi * solution.loss * v
        return np.concatenate((u / (u @ strength), solution.sampling))

    def joint_gradient(x: FloatArray) -> FloatArray:
        u, p = x[:K], x[K:]
        return np.concatenate((2 * u * (1 / n + kappa / p), -((u / p) ** 2) * kappa))

    return {
        "neyman_shares": Program(
            lambda: neyman_shares(a, lower=lower, upper=upper),
            lambda p: float((a**2 / p).sum()),
            lambda p: -((a / p) ** 2),
            one / K,
            within(lower * one, upper * one),
            one[None],
        ),
        "fgls_weights": Program(
            lambda: pi * fgls_weights(noise, importance=pi, sizes=n),
            lambda u: float((u**2 * noise / n).sum()),
            lambda u: 2 * u * noise / n,
            pi,
            within(zero, one),
            one[None],
        ),
        "gap_weights": Program(
            lambda: pi * gap_weights(mean, variance, importance=pi, sizes=n, lower=0.2),
            lambda u: float(((pi - u) @ mean) ** 2 + (u**2 * variance / n).sum()),
            lambda u: 2 * (u * variance / n - ((pi - u) @ mean) * mean),
            pi,
            within(0.2 * pi, one),
            one[None],
        ),
        "joint_weights": Program(
            joint,
            lambda x: float((x[:K] ** 2 * (1 / n + kappa / x[K:])).sum()),
            joint_gradient,
            np.concatenate((one / K / strength, one / K)),
            within(np.concatenate((zero, lower * one)), np.repeat([np.inf, upper], K)),
            np.block([[strength, zero], [zero, one]]),
        ),
    }


def run(solve: Callable[[], Any], ours: float, fast: float) -> tuple[float, float, str]:
    """Return how many times slower a solver is, our value over its value − 1, and both as text."""
    began = process_time()
    found = solve()
    slow = process_time() - began
    ratio, excess = slow / fast, ours / found.fun - 1.0
    time = f"{slow * 1e3:.0f} ms" if found.success else f"did not finish in {slow:.0f} s"
    return ratio, excess, f"{time} | {'' if found.success else '> '}{ratio:.0f} | {excess:.1e}"


def against_scipy() -> bool:
    print(f"\n### Against SciPy's general solvers, K = {K}; value: ours / theirs − 1\n")
    print("| solver | time | SLSQP | ratio | value | on target | trust-constr | ratio | value |")
    print("|---|---|---|---|---|---|---|---|---|")
    good = True
    for name, program in programs().items():
        fast, ours = seconds(program.ours)[0], program.value(program.ours())
        ratio, excess, slsqp = run(program.slsqp, ours, fast)
        fine = excess <= SAME_OPTIMUM and ratio >= SLSQP_AT_LEAST
        good &= fine
        *_, trust_constr = run(program.trust_constr, ours, fast)
        mark = "yes" if fine else "NO"
        print(f"| {name} | {fast * 1e6:.0f} µs | {slsqp} | {mark} | {trust_constr} |", flush=True)
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
        lower, upper = 0.2 / size, 3.0 / size
        joint: dict[str, Any] = {"draws": 6400, "share_bounds": (lower, upper), **data}
        jobs: dict[str, Callable[[], object]] = {
            "numpy.sort, µs": partial(np.sort, a),
            "neyman_shares": partial(neyman_shares, a),
            "neyman_shares, bounds bind": partial(neyman_shares, a, lower=lower, upper=upper),
            "neyman_counts": partial(neyman_counts, a, 10 * size),
            "fgls_weights": partial(fgls_weights, noise, **data),
            "gap_weights": partial(gap_weights, a, noise, **data, lower=0.2),
            "joint_weights": partial(joint_weights, a, noise, **joint),
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
    results = [against_scipy(), against_enumeration(), against_sort()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
