"""Every solver from one domain to a million, inputs over thirty orders of magnitude: certified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adaptmix._checks import FloatArray
from adaptmix.solvers import (
    fgls_weights,
    gap_weights,
    joint_weights,
    neyman_counts,
    neyman_shares,
)
from tests.solvers.certificates import (
    allocation_residual,
    counts_residual,
    fgls_residual,
    gap_residual,
    joint_residual,
)


def shares(columns: FloatArray) -> float:
    a, b, _, _ = columns
    bounds: dict[str, Any] = {"lower": 0.1 / a.size, "upper": min(1.0, 5.0 / a.size), "cost": b}
    return allocation_residual(a, neyman_shares(a, **bounds), **bounds)


def counts(columns: FloatArray) -> float:
    a = columns[0]
    return counts_residual(a, neyman_counts(a, 3 * a.size))


def fgls(columns: FloatArray) -> float:
    _, b, pi, n = columns
    data = {"importance": pi, "sizes": n}
    return fgls_residual(b, fgls_weights(b, **data), **data)


def gap(columns: FloatArray) -> float:
    a, b, pi, n = columns
    data: dict[str, Any] = {"importance": pi, "sizes": n, "lower": 0.2}
    return gap_residual(a, b, gap_weights(a, b, **data), **data)


def joint(columns: FloatArray) -> float:
    a, b, pi, n = columns
    data: dict[str, Any] = {"importance": pi, "sizes": n, "draws": 6400}
    data |= {"share_bounds": (0.1 / a.size, min(1.0, 5.0 / a.size))}
    solution = joint_weights(a, b, **data)
    return joint_residual(a, b, solution.loss, solution.sampling, **data)


@pytest.mark.parametrize("size", [1, 2, 30, 1000, 1_000_000])
@pytest.mark.parametrize("residual", [shares, counts, fgls, gap, joint])
def test_certificate(residual: Callable[[FloatArray], float], size: int) -> None:
    columns = 10.0 ** np.random.default_rng(size).uniform(-15.0, 15.0, (4, size))
    assert residual(columns) <= 1e-9
