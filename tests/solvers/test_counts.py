"""neyman_counts against exhaustive search and the plain greedy rule, and its certificate."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix.solvers import neyman_counts
from tests.solvers.certificates import counts_residual

whole = st.integers(0, 30)
wide = st.floats(-15.0, 15.0).map(lambda exponent: 10.0**exponent)


def counts_by_greed(a: list[int], total: int, low: list[int], high: list[int]) -> list[int]:
    """Hand out units one by one, in exact arithmetic: the rule that defines the result."""
    counts = list(low)

    def key(i: int) -> tuple[int, Fraction, int]:
        b, square = counts[i], Fraction(a[i]) ** 2
        if a[i] == 0:  # last, evenly
            return (0, Fraction(-b), -i)
        return (2, square, -i) if b == 0 else (1, square / (b * (b + 1)), -i)

    for _ in range(total - sum(low)):
        counts[max((i for i in range(len(a)) if counts[i] < high[i]), key=key)] += 1
    return counts


@given(st.data())
def test_equals_greed(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 8))

    def draw(values: st.SearchStrategy[int]) -> list[int]:
        return data.draw(st.lists(values, min_size=size, max_size=size))

    a = draw(whole)
    low = draw(st.integers(0, 3))
    high = [b + room for b, room in zip(low, draw(st.integers(0, 40)), strict=True)]
    total = data.draw(st.integers(sum(low), sum(high)))
    counts = neyman_counts(a, total, minimum=low, maximum=high)
    assert counts.dtype == np.int64
    assert counts.tolist() == counts_by_greed(a, total, low, high)
    assert counts_residual(a, counts, minimum=low, maximum=high) == 0.0


@pytest.mark.parametrize("seed", range(30))
def test_equals_exhaustive_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, total = int(rng.integers(1, 5)), int(rng.integers(5, 14))
    a = rng.lognormal(0.0, 1.5, size)
    every = [b for b in product(range(1, total + 1), repeat=size) if sum(b) == total]
    best = min((a**2 / np.array(b)).sum() for b in every)
    assert (a**2 / neyman_counts(a, total)).sum() == pytest.approx(best, rel=1e-14)


@given(
    st.lists(wide | st.just(0.0), min_size=1, max_size=30),
    st.integers(0, 10**12),
    st.sampled_from([0, 1]),
)
def test_certificate(a: list[float], total: int, minimum: int) -> None:
    total += minimum * len(a)
    counts = neyman_counts(a, total, minimum=minimum)
    assert counts.sum() == total and (counts >= minimum).all()
    assert counts_residual(a, counts, minimum=minimum) <= 1e-9


def test_more_domains_than_samples_take_the_largest_scales() -> None:
    assert neyman_counts([1, 5, 3, 5, 2], 3, minimum=0).tolist() == [0, 1, 1, 1, 0]
    assert neyman_counts([1, 1, 1], 2, minimum=0).tolist() == [1, 1, 0]
    assert neyman_counts([1, 0, 1], 4, minimum=0, maximum=1 + 1).tolist() == [2, 0, 2]
    assert neyman_counts([1, 0, 0], 5, minimum=0, maximum=[2, 9, 9]).tolist() == [2, 2, 1]


@given(st.integers(1, 40), st.integers(0, 500), st.sampled_from([0.0, 1e-15, 1.0, 1e15]))
def test_equal_domains_differ_by_one_at_most(size: int, total: int, value: float) -> None:
    counts = neyman_counts(np.full(size, value), total, minimum=0)
    assert counts.sum() == total
    assert np.ptp(counts) <= 1 and (np.diff(counts) <= 0).all()


@given(st.lists(whole, min_size=2, max_size=10, unique=True), st.integers(20, 5000))
def test_scale_and_order_do_not_matter(a: list[int], total: int) -> None:
    # Scales without a common ratio of square roots, so that no two units tie.
    scale = np.sqrt(np.array(a) + np.pi / 10)
    counts = neyman_counts(scale, total)
    np.testing.assert_array_equal(neyman_counts(scale * 1e-15, total), counts)
    np.testing.assert_array_equal(neyman_counts(scale[::-1], total)[::-1], counts)


def test_large_inputs() -> None:
    a = np.random.default_rng(0).lognormal(0.0, 3.0, 200_000)
    counts = neyman_counts(a, 1_000_000)
    assert counts.sum() == 1_000_000 and counts_residual(a, counts) <= 1e-9
    few = neyman_counts(a[:100], 2**46)
    np.testing.assert_allclose(few / 2**46, a[:100] / a[:100].sum(), atol=1e-12)


def test_residual_sees_a_better_move() -> None:
    assert counts_residual([3.0, 1.0], [2, 2]) > 0.5
    assert counts_residual([3.0, 1.0], [3, 1]) == 0.0
    assert counts_residual([3.0, 1.0], [4, 0], minimum=0) == 1.0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1, 2, 3], 2), {}, ValueError, r"minimum must add up to at most total \(2\).*got 3"),
        (([1, 2], 9), {"maximum": 4}, ValueError, r"maximum must add up to at least total \(9\)"),
        (([1, 2], 9), {"minimum": 3, "maximum": 2}, ValueError, r"got 3 > 2 at 0"),
        (([1, 2], 2.5), {}, TypeError, r"total must be an integer >= 0; got 2.5"),
        (([1, 2], 2**50), {}, ValueError, r"total must be at most 2\*\*46"),
        (([1, 2], 5), {"minimum": [1, 0.5]}, TypeError, r"minimum must be integers; got 0.5 at 1"),
        (([1, -2], 5), {}, ValueError, r"scale must be >= 0; got -2 at 1"),
        (([1, 2], -1), {}, ValueError, r"total must be an integer >= 0; got -1"),
    ],
)
def test_messages(
    arguments: tuple[Any, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        neyman_counts(*arguments, **options)


def test_counts_to_judge_must_keep_their_bounds() -> None:
    with pytest.raises(ValueError, match=r"counts must be in \[1, 3\]; got 0 at 0"):
        counts_residual([1.0, 1.0], [0, 3])
