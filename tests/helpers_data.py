"""Inputs that several tests share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from adaptmix._checks import FloatArray
from adaptmix.data import Draw, Layout, Mixture
from adaptmix.data._plan import Plan
from adaptmix.data._step_rows import StepRows

# How far from its mean a statistic may lie, in standard deviations, before a test fails. For a
# normal statistic that is a false alarm in 1.5e5 seeds (two-sided); seeds are fixed.
SIGMAS = 4.5

UNIFORMS = st.one_of(
    st.floats(0.0, 1.0, exclude_max=True),
    # The ends of the range, where rounding bites.
    st.sampled_from([0.0, float(np.nextafter(0.5, 0.0)), 0.5, float(np.nextafter(1.0, 0.0))]),
)


def vectors(
    low: float, high: float, *, min_size: int = 1, max_size: int = 8
) -> st.SearchStrategy[list[float]]:
    """Vectors of floats in [low, high]."""
    return st.lists(st.floats(low, high), min_size=min_size, max_size=max_size)


def simplex(values: Sequence[float]) -> FloatArray:
    """Scale positive values to sum to one, written out."""
    array = np.asarray(values, dtype=np.float64)
    array = array / array.max()
    scaled: FloatArray = array / array.sum()
    return scaled


def mixture(*sizes: int) -> Mixture:
    """Domains d0, d1, … whose rows are their own numbers in the mixture."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return Mixture(
        {f"d{i}": list(range(starts[i], starts[i] + size)) for i, size in enumerate(sizes)}
    )


def plan(
    sizes: Sequence[int], *, lag: int = 0, seed: int = 0, shares: Sequence[float] | None = None
) -> Plan:
    """A plan over ``mixture(*sizes)``, proportional to the sizes unless told otherwise."""
    mix = mixture(*sizes)
    p = mix.importance if shares is None else np.asarray(shares, dtype=np.float64)
    return Plan(mix, shares=p, lag=lag, seed=seed)


def draw_of(domains: Sequence[int], domain_shares: Sequence[float]) -> Draw:
    """A draw of rows 0, 1, … with these domains."""
    ids: NDArray[np.int64] = np.asarray(domains, dtype=np.int64)
    return Draw.build(
        domains=ids,
        rows=np.arange(len(ids)),
        fresh=np.ones(len(ids), dtype=bool),
        domain_shares=np.asarray(domain_shares, dtype=np.float64),
        row_shares=np.bincount(ids, minlength=len(domain_shares)) / len(ids),
        ordinal=0,
        step=0,
        layout=Layout(max(1, len(ids))),
        plan=None,
    )


def same_step(left: StepRows, right: StepRows) -> bool:
    """Whether two drawn steps are bit-identical."""
    return (
        left.step == right.step
        and np.array_equal(left.rows, right.rows)
        and np.array_equal(left.domains, right.domains)
        and np.array_equal(left.fresh, right.fresh)
        and np.array_equal(left.domain_shares, right.domain_shares)
        and np.array_equal(left.row_shares, right.row_shares)
        and np.array_equal(left.held, right.held)  # type: ignore[arg-type]
    )
