"""Shrinkage: what it promises, and the same written out slowly.

Also tests ``policies/_moments.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from adaptmix import DomainStats
from adaptmix.policies import Shrink
from adaptmix.policies._moments import within

FIELDS = {
    "grad_var": "count",
    "grad_sq": "count",
    "noise": "noise_count",
    "loss_var": "loss_count",
}
every_field = pytest.mark.parametrize("field", FIELDS)


def shrink(
    values: Sequence[float], count: Sequence[float], *, samples: float = 5.0, field: str = "noise"
) -> list[float]:
    stats = DomainStats(**{field: values, FIELDS[field]: count})
    prepared, _ = Shrink(samples).prepare(stats, {})
    return [float(value) for value in getattr(prepared, field)]


def reference(values: Sequence[float], count: Sequence[float], samples: float) -> list[float]:
    """The docstring's formula, one domain at a time, for finite counts and variances > 0."""
    K, c = len(values), samples / 4.0
    total = math.fsum(count)
    x = [math.sqrt(value) for value in values]
    X = math.fsum(n * xi for n, xi in zip(count, x, strict=True)) / total
    s = c / total * math.fsum(n * xi**2 * n / (n + c) for n, xi in zip(count, x, strict=True))
    scatter = math.fsum(n * (xi - X) ** 2 for n, xi in zip(count, x, strict=True))
    t = (scatter - (K - 1) * s) / (total - math.fsum(n**2 for n in count) / total)
    if t <= 0.0:
        return [X**2] * K
    first = [xi + (X - xi) * (s / t) / (n + s / t) for n, xi in zip(count, x, strict=True)]
    own = [c * xi**2 / t for xi in first]
    return [(xi + (X - xi) * k / (n + k)) ** 2 for n, xi, k in zip(count, x, own, strict=True)]


estimates = st.integers(2, 6).flatmap(
    lambda K: st.tuples(
        st.lists(st.floats(0.1, 10.0), min_size=K, max_size=K),
        st.lists(st.floats(1.0, 200.0), min_size=K, max_size=K),
    )
)


@every_field
@given(estimate=estimates, samples=st.floats(0.1, 30.0))
def test_it_is_the_formula(
    field: str, estimate: tuple[list[float], list[float]], samples: float
) -> None:
    shrunk = shrink(*estimate, samples=samples, field=field)
    np.testing.assert_allclose(shrunk, reference(*estimate, samples), rtol=1e-9)


def kept(values: Sequence[float], count: Sequence[float]) -> NDArray[np.float64]:
    """How much of each domain's distance from the pooled deviation is left; NaN next to it."""
    x, n = np.sqrt(values), np.array(count)
    pool = (n * x).sum() / n.sum()
    moved = np.sqrt(shrink(values, count))
    nothing = np.full(len(x), np.nan)
    left: NDArray[np.float64] = np.divide(
        moved - pool, x - pool, where=np.abs(x - pool) > 1e-6, out=nothing
    )
    return left


@given(estimate=estimates)
def test_estimates_move_towards_the_pool(estimate: tuple[list[float], list[float]]) -> None:
    left = kept(*estimate)
    assert np.nanmin(left, initial=0.0) >= -1e-9
    assert np.nanmax(left, initial=0.0) <= 1.0 + 1e-9


@given(
    values=st.lists(st.floats(0.5, 10.0), min_size=2, max_size=6),
    count=st.floats(1.0, 200.0),
    more=st.floats(0.0, 200.0),
)
def test_loud_estimates_move_more_and_those_with_more_samples_less(
    values: list[float], count: float, more: float
) -> None:
    alike = kept(sorted(values), [count] * len(values))
    assert (np.diff(alike[~np.isnan(alike)]) <= 1e-7).all()
    twice = kept([*values, values[0]], [count + more, *[count] * len(values)])
    assert np.isnan(twice[0]) or twice[0] >= twice[-1] - 1e-7


@given(estimate=estimates, factor=st.floats(1.0, 100.0))
def test_more_samples_behind_every_estimate_never_shrink_them_more(
    estimate: tuple[list[float], list[float]], factor: float
) -> None:
    values, count = estimate
    few = np.array(shrink(values, count))
    many = np.array(shrink(values, [factor * n for n in count]))
    assert (np.abs(many - values) <= np.abs(few - values) + 1e-9).all()


@every_field
def test_zero_samples_change_nothing(field: str) -> None:
    values = [1.0, 3.0, math.nan]
    np.testing.assert_array_equal(shrink(values, [2, 3, 0], samples=0.0, field=field), values)


@given(st.lists(st.floats(0.0, 1e15), min_size=1, max_size=6))
def test_exact_estimates_stay_exactly(values: list[float]) -> None:
    assert shrink(values, [math.inf] * len(values), field="grad_var") == values
    known = shrink([*values, 3.0], [*[math.inf] * len(values), 5.0], field="grad_var")
    assert known[:-1] == values


@given(value=st.floats(1e-15, 1e15), count=st.lists(st.integers(1, 1000), min_size=1))
def test_equal_domains_are_left_alone_exactly(value: float, count: list[float]) -> None:
    assert shrink([value] * len(count), count) == [value] * len(count)


def test_domains_that_differ_by_no_more_than_noise_become_equal() -> None:
    rng = np.random.default_rng(0)
    count = np.full(8, 20.0)
    equal = [
        np.ptp(shrink(list(rng.chisquare(20, 8) / 20), list(count), samples=8.0)) < 1e-12
        for _ in range(200)
    ]
    assert np.mean(equal) > 0.95


def test_domains_that_truly_differ_are_left_nearly_alone() -> None:
    np.testing.assert_allclose(
        shrink([1.0, 100.0, 1e4], [1000, 1000, 1000]), [1.0, 100.0, 1e4], rtol=0.1
    )


@pytest.mark.parametrize("unknown", [math.nan, 7.0])
def test_a_domain_without_samples_gets_the_pool(unknown: float) -> None:
    shrunk = shrink([4.0, 1.0, unknown], [300, 100, 0])
    assert shrunk[2] == pytest.approx(((300 * 2 + 100 * 1) / 400) ** 2)
    assert shrunk[:2] == shrink([4.0, 1.0], [300, 100])


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([1.0, 2.0], [0, 0]),  # counts are not known
        ([math.nan, math.nan], [5, 5]),
        ([0.0, 0.0, math.nan], [5, 5, 5]),
        ([3.0], [5]),
    ],
)
def test_where_there_is_nothing_to_go_by_all_stays(values: list[float], count: list[float]) -> None:
    np.testing.assert_array_equal(shrink(values, count), values)


def test_extremes_stay_finite() -> None:
    shrunk = shrink([1e-300, 1e300, 0.0, math.nan], [1, 10**6, 1, 1])
    assert np.isfinite(shrunk).all()
    assert shrunk[1] == pytest.approx(1e300, rel=1e-3)


@pytest.mark.parametrize("field", ["noise", "loss_var"])
def test_what_was_seen_counts_where_effective_samples_are_not_known(field: str) -> None:
    values, seen = [1.0, 2.0, 4.0], [3.0, 30.0, 300.0]
    stats, _ = Shrink().prepare(DomainStats(**{field: values, "seen": seen}), {})
    assert getattr(stats, field).tolist() == shrink(values, seen, field=field)
    forgotten = DomainStats(**{field: values, FIELDS[field]: [3.0, 30.0, 3.0], "seen": seen})
    assert getattr(Shrink().prepare(forgotten, {})[0], field).tolist() == shrink(
        values, [3.0, 30.0, 3.0], field=field
    )


def test_the_part_within_a_domain_is_shrunk_by_its_own_freedom() -> None:
    freedom, square = np.array([1.0, 9.0, 0.0, math.inf]), np.array([2.0, 3.0, 5.0, 8.0])
    part, k = np.array([0.9, 0.3, math.nan, 0.5]), 4.0
    stats = DomainStats(grad_var=part * square, grad_sq=square, grad_freedom=freedom)
    mean = (1.0 * 0.9 + 9.0 * 0.3 + 1.0 * 0.5) / 11.0  # an exact one is one domain
    expected = [
        2.0 * (0.9 + (mean - 0.9) * k / (1.0 + k)),
        3.0 * (0.3 + (mean - 0.3) * k / (9.0 + k)),
        5.0 * mean,
        8.0 * 0.5,
    ]
    np.testing.assert_allclose(within(stats, samples=k), expected)
    np.testing.assert_allclose(within(stats), [1.8, 0.9, 5.0 * mean, 4.0])
    alone = DomainStats(grad_var=[1.0, math.nan], grad_freedom=[3.0, 0.0])
    np.testing.assert_array_equal(within(alone, samples=k), [1.0, math.nan])
    nothing = DomainStats(grad_var=[math.nan] * 2, grad_sq=[1.0, 2.0], grad_freedom=[0.0, 0.0])
    assert np.isnan(within(nothing, samples=k)).all()


def test_it_leaves_other_statistics_and_its_argument_alone() -> None:
    stats = DomainStats(
        count=[5, 50],
        seen=[9, 90],
        age=[0, 1],
        loss_mean=[1.0, 2.0],
        noise=[1.0, 3.0],
        grad_gram=[[1.0, 0.0], [0.0, 1.0]],
    )
    prepared, state = Shrink().prepare(stats, {})
    assert state == {}
    for field in ("count", "seen", "age", "loss_mean", "loss_var", "grad_var", "grad_gram"):
        np.testing.assert_array_equal(getattr(prepared, field), getattr(stats, field))
    assert stats.noise.tolist() == [1.0, 3.0]
    assert prepared.supplied() == stats.supplied()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="samples must be"):
        Shrink(-1.0)
    with pytest.raises(TypeError, match="samples must be a number"):
        Shrink("few")  # type: ignore[arg-type]


def test_gradients_shrink_by_what_the_run_says_of_their_scatter() -> None:
    """Norms that hardly scatter from row to row tell a domain's moment from few rows."""
    values, count = [1.0, 2.0, 4.0], [6.0, 6.0, 6.0]

    def prepared(scatter: float, freedom: float) -> DomainStats:
        stats = DomainStats(
            grad_sq=values,
            noise=values,
            noise_count=count,
            count=count,
            grad_sq_scatter=[scatter] * 3,
            grad_sq_freedom=[freedom] * 3,
        )
        return Shrink().prepare(stats, {})[0]

    unknown = prepared(0.1, 0.0)
    assert unknown.grad_sq.tolist() == shrink(values, count, field="grad_sq")
    known = prepared(0.1, 1e9)
    np.testing.assert_allclose(
        known.grad_sq, shrink(values, count, samples=0.1, field="grad_sq"), rtol=1e-6
    )
    # Four degrees of freedom are what the default counts for; other fields do not hear of it.
    between = prepared(0.1, 4.0 / 3.0)
    expected = shrink(values, count, samples=2.55, field="grad_sq")
    np.testing.assert_allclose(between.grad_sq, expected)
    assert known.noise.tolist() == shrink(values, count)


def test_a_domain_of_zeros_is_taken_to_have_a_part_of_the_others_moments() -> None:
    """The fewer zeros were seen, the larger; and it grows again when they are forgotten."""
    found = []
    for zeros in (9.0, 99.0, 999.0):
        stats = DomainStats(
            count=[1e6, 1e6, zeros], grad_sq=[4.0, 2.0, 0.0], grad_var=[4.0, 2.0, 0.0]
        )
        prepared, _ = Shrink().prepare(stats, {})
        np.testing.assert_allclose(prepared.grad_var[:2], [4.0, 2.0], rtol=1e-3)
        assert prepared.grad_var[2] == prepared.grad_sq[2]
        found.append(float(prepared.grad_var[2]))
    assert found[0] > found[1] > found[2] > 0.0
    # At least what one of n + 1 samples like the others' would tell; shrinkage adds to it.
    assert all(v >= 3.0 / (n + 1.0) for v, n in zip(found, (9.0, 99.0, 999.0), strict=True))
    assert found[2] < 0.1


def test_where_all_gradients_are_zero_nothing_is_made_up() -> None:
    stats = DomainStats(count=[9.0, 9.0], grad_sq=[0.0, 0.0], grad_var=[0.0, 0.0])
    prepared, _ = Shrink().prepare(stats, {})
    np.testing.assert_array_equal(prepared.grad_var, [0.0, 0.0])
