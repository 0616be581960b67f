"""Random problems for joint_weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from adaptmix._checks import FloatArray
from adaptmix.solvers import JointSolution
from tests.solvers.certificates import joint_residual

TOLERANCE = 1e-9


wide = st.floats(-15.0, 15.0).map(lambda exponent: 10.0**exponent)


@st.composite
def problems(draw: st.DrawFn, *, degenerate: bool = False) -> dict[str, Any]:
    size = draw(st.integers(1, 10))

    def column(values: st.SearchStrategy[float], limit: float = 0.0) -> FloatArray:
        drawn = values | st.just(limit) if degenerate else values
        return np.array(draw(st.lists(drawn, min_size=size, max_size=size)))

    inner = np.array(draw(st.lists(st.floats(0.01, 1.0), min_size=size, max_size=size)))
    inner /= inner.sum()
    low, room = draw(st.sampled_from([(0.0, 1.0), (0.9, 0.1), (0.3, 0.3), (0.0, 0.02)]))
    return {
        "grad_var": column(wide),
        "noise": column(wide),
        "importance": np.array(draw(st.lists(wide, min_size=size, max_size=size))),
        "sizes": column(wide, np.inf),
        "draws": draw(wide | st.just(math.inf)),
        "share_bounds": (low * inner, inner + room * (1.0 - inner)),
    }


def residual(solution: JointSolution, problem: dict[str, Any]) -> float:
    return joint_residual(loss=solution.loss, sampling=solution.sampling, **problem)


def mass(problem: dict[str, Any]) -> FloatArray:
    pi: FloatArray = problem["importance"] / problem["importance"].sum()
    return pi


near = st.floats(-3.0, 3.0).map(lambda exponent: 10.0**exponent)


@st.composite
def penalised(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(1, 8))
    column = st.lists(near, min_size=size, max_size=size).map(np.array)
    return {
        "grad_var": draw(column),
        "noise": draw(column),
        "importance": draw(column),
        "sizes": draw(column),
        "draws": draw(near | st.just(math.inf)),
        "loss_mean": draw(column),
        "bias_penalty": draw(st.floats(-9.0, 9.0).map(lambda exponent: 10.0**exponent)),
    }
