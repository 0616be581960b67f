"""Laws of normalisation, floors and the effective number of domains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix._simplex import effective_domains, mix_floor, normalise
from tests.helpers_data import simplex, vectors

ANY_SCALE = vectors(1e-300, 1e300)
POSITIVE = vectors(1e-3, 1e3)


@given(values=ANY_SCALE)
def test_normalise_lands_on_the_simplex(values: list[float]) -> None:
    p = normalise(values)
    assert np.isfinite(p).all()
    assert (p >= 0.0).all()
    assert math.fsum(p) == pytest.approx(1.0, abs=1e-14)


@given(values=POSITIVE)
def test_normalise_keeps_ratios(values: list[float]) -> None:
    total = math.fsum(values)
    np.testing.assert_allclose(normalise(values), [v / total for v in values], rtol=1e-14)


@given(values=POSITIVE, exponent=st.integers(-970, 970))
def test_normalise_does_not_see_the_scale(values: list[float], exponent: int) -> None:
    # A power of two changes no bit of the mantissa.
    scaled = np.array(values) * 2.0**exponent
    assert normalise(scaled).tolist() == normalise(values).tolist()


@given(values=ANY_SCALE, data=st.data())
def test_normalise_is_permutation_equivariant(values: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(values))))
    np.testing.assert_allclose(
        normalise(np.array(values)[order]), normalise(values)[order], rtol=1e-14, atol=1e-300
    )


@given(pairs=st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1))
def test_normalise_by_importance(pairs: list[tuple[float, float]]) -> None:
    values, importance = np.array(pairs).T
    w = normalise(values, importance=importance)
    assert float(importance @ w) == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(w / w[0], values / values[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "importance", "message"),
    [
        ([0.0, 0.0], None, "values must not all be 0"),
        ([1.0, -1.0], None, "values must be >= 0; got -1 at 1"),
        ([1.0, np.nan], None, "values must be finite; got nan at 1"),
        ([], None, r"values must have shape \(K,\)"),
        ([1.0, 0.0], [0.0, 1.0], "importance must be > 0 where values are"),
        ([1.0, 1.0], [1.0], r"importance must have one value per domain \(2\); got 1"),
    ],
)
def test_normalise_refuses(
    values: list[float], importance: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        normalise(values, importance=importance)


@given(values=ANY_SCALE, part=st.floats(0.0, 1.0))
def test_mix_floor_keeps_the_floor_and_the_sum(values: list[float], part: float) -> None:
    shares = simplex(values)
    lower = part / len(values)
    p = mix_floor(shares, lower=lower)
    assert (p >= lower).all()
    assert math.fsum(p) == pytest.approx(1.0, abs=1e-14)


@given(values=POSITIVE, part=st.floats(0.0, 0.9))
def test_mix_floor_is_the_written_out_mixture(values: list[float], part: float) -> None:
    shares, K = simplex(values), len(values)
    expected = [(1.0 - part) * share + part / K for share in shares]
    np.testing.assert_allclose(mix_floor(shares, lower=part / K), expected, rtol=1e-12)


@given(values=POSITIVE, part=st.floats(0.0, 1.0), data=st.data())
def test_mix_floor_is_permutation_equivariant(
    values: list[float], part: float, data: st.DataObject
) -> None:
    shares = simplex(values)
    order = data.draw(st.permutations(range(len(values))))
    lower = part / len(values)
    assert (
        mix_floor(shares[order], lower=lower).tolist()
        == mix_floor(shares, lower=lower)[order].tolist()
    )


def test_mix_floor_ends() -> None:
    assert mix_floor([0.9, 0.1], lower=0.0).tolist() == [0.9, 0.1]
    assert mix_floor([1.0, 0.0], lower=0.5).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"^lower must be in \[0, 1/K\]; got 0.6 with K=2\."):
        mix_floor([0.5, 0.5], lower=0.6)


@given(values=ANY_SCALE)
def test_effective_domains_lies_between_one_and_all(values: list[float]) -> None:
    assert 1.0 <= effective_domains(values) <= len(values) * (1.0 + 1e-12)


@given(values=POSITIVE)
def test_effective_domains_is_the_exponential_of_entropy(values: list[float]) -> None:
    entropy = -math.fsum(p * math.log(p) for p in simplex(values))
    assert effective_domains(values) == pytest.approx(math.exp(entropy), rel=1e-12)


@given(K=st.integers(1, 50), scale=st.floats(1e-300, 1e300))
def test_effective_domains_at_its_ends(K: int, scale: float) -> None:
    assert effective_domains(np.full(K, scale)) == pytest.approx(K, rel=1e-12)
    assert effective_domains(np.eye(K)[0] * scale) == 1.0


@given(values=POSITIVE, part=st.floats(0.0, 1.0))
def test_a_floor_never_lowers_the_effective_number(values: list[float], part: float) -> None:
    shares = simplex(values)
    floored = mix_floor(shares, lower=part / len(values))
    assert effective_domains(floored) >= effective_domains(shares) * (1.0 - 1e-12)
