"""Laws of randomised rounding: the sum, the sure part and the mean."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from adaptmix._checks import FloatArray
from adaptmix.data._rounding import systematic_counts, whole_part
from tests.helpers_data import UNIFORMS, simplex

# Expected counts this close to an integer are that integer.
SNAP = 1e-9


@st.composite
def expectations(draw: st.DrawFn) -> FloatArray:
    """Expected counts N·p, some of them zero or whole."""
    parts = st.one_of(st.integers(0, 4).map(float), st.floats(0.0, 1.0))
    values = draw(st.lists(parts, min_size=1, max_size=10).filter(lambda v: max(v) > 1e-3))
    return draw(st.integers(1, 64)) * simplex(values)


@given(expected=expectations(), uniform=UNIFORMS)
@example(expected=np.full(4, 1.5), uniform=float(np.nextafter(1.0, 0.0)))
@example(expected=np.array([0.1] * 10 + [0.0]), uniform=0.0)
@example(expected=np.array([0.5, 0.5, 5e-12]), uniform=0.0)
def test_counts_are_floors_or_ceilings_with_the_right_sum(
    expected: FloatArray, uniform: float
) -> None:
    counts = systematic_counts(expected, uniform)
    assert counts.dtype == np.int64
    assert counts.sum() == round(math.fsum(expected))
    assert (counts >= np.floor(expected + SNAP)).all()
    assert (counts <= np.ceil(expected - SNAP)).all()
    assert (counts >= whole_part(expected)).all()


@given(expected=expectations())
def test_the_mean_is_the_expectation(expected: FloatArray) -> None:
    """Counts are piecewise constant in ``uniform``, so their integral over [0, 1) is a sum."""
    jumps = np.sort(1.0 - np.mod(np.cumsum(expected), 1.0))
    edges = np.unique(np.concatenate([[0.0], jumps[jumps < 1.0], [1.0]]))
    widths, middles = np.diff(edges), (edges[1:] + edges[:-1]) / 2.0
    mean = sum(
        width * systematic_counts(expected, float(middle))
        for width, middle in zip(widths, middles, strict=True)
    )
    np.testing.assert_allclose(mean, expected, atol=1e-7)


@given(counts=st.lists(st.integers(0, 100), min_size=1, max_size=8), uniform=UNIFORMS)
def test_whole_counts_are_kept(counts: list[int], uniform: float) -> None:
    assert systematic_counts(np.array(counts, dtype=np.float64), uniform).tolist() == counts


@given(
    counts=st.lists(st.integers(1, 100), min_size=1, max_size=8),
    error=st.floats(-1e-12, 1e-12),
    uniform=UNIFORMS,
)
def test_rounding_errors_of_a_solver_do_not_matter(
    counts: list[int], error: float, uniform: float
) -> None:
    nearly = np.array(counts) + error
    assert whole_part(nearly).tolist() == counts
    assert systematic_counts(nearly, uniform).tolist() == counts


def test_whole_part_is_what_a_domain_is_sure_of() -> None:
    assert whole_part(np.array([0.0, 0.999, 1.0, 2.5, 3.0 - 1e-15])).tolist() == [0, 0, 1, 2, 3]
