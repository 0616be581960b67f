"""Every check accepts its range, and its message names parameter, rule and value."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix._checks import choice, integer, lower_share, number, vector
from tests.helpers_data import vectors


@given(values=vectors(-1e300, 1e300))
def test_vector_returns_a_copy_in_float64(values: list[float]) -> None:
    given_array = np.array(values)
    result = vector("x", given_array)
    assert result.dtype == np.float64
    assert result.tolist() == values
    result += 1.0
    assert given_array.tolist() == values


@pytest.mark.parametrize(
    "value", [(1, 2), [True, False], np.array([0.5, 2.0], dtype=np.float32), range(3)]
)
def test_vector_takes_any_sequence_of_numbers(value: Any) -> None:
    assert vector("x", value).tolist() == [float(v) for v in value]


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ([], {}, r"x must have shape (K,) with K >= 1; got shape (0,)."),
        (1.0, {}, r"x must have shape (K,) with K >= 1; got shape ()."),
        ([[1.0]], {}, r"x must have shape (K,) with K >= 1; got shape (1, 1)."),
        ([1.0, 2.0], {"size": 3}, r"x must have one value per domain (3); got 2."),
        ([1.0, np.nan], {}, r"x must be finite; got nan at 1."),
        ([np.inf, 1.0], {}, r"x must be finite; got inf at 0."),
        ([1.0, -np.inf], {"infinite": True}, r"x must be finite; got -inf at 1."),
        ([np.nan], {"infinite": True}, r"x must be finite; got nan at 0."),
        ([0.5, -0.5], {"minimum": 0.0}, r"x must be >= 0; got -0.5 at 1."),
        ([0.5, 0.0], {"minimum": 0.0, "strict": True}, r"x must be > 0; got 0 at 1."),
    ],
)
def test_vector_refuses(value: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        vector("x", value, **options)


def test_vector_takes_infinity_only_when_told() -> None:
    assert vector("x", [1.0, np.inf], infinite=True).tolist() == [1.0, np.inf]


def test_vector_takes_its_minimum_unless_strict() -> None:
    assert vector("x", [0.0, 1.0], minimum=0.0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "value",
    [[1.0, "a"], {"a": 1.0}, [[1.0], [1.0, 2.0]], ["1", "2"], np.array([1.0 + 1.0j])],
    ids=["letters", "mapping", "ragged", "digits as text", "complex"],
)
def test_vector_refuses_what_is_not_numeric(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^x must be a vector of numbers; got "):
        vector("x", value)


@given(value=st.integers(-5, 10**30), minimum=st.integers(-3, 3))
def test_integer_keeps_the_minimum(value: int, minimum: int) -> None:
    if value >= minimum:
        assert integer("n", value, minimum=minimum) == value
        return
    rule = re.escape(f"n must be an integer >= {minimum}; got {value}.")
    with pytest.raises(ValueError, match=f"^{rule}$"):
        integer("n", value, minimum=minimum)


def test_integer_turns_numpy_integers_into_int() -> None:
    assert type(integer("n", np.int32(3), minimum=1)) is int


@pytest.mark.parametrize("value", [True, 1.0, "1", None, np.float64(2.0)])
def test_integer_refuses_other_types(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^n must be an integer >= 1; got "):
        integer("n", value, minimum=1)


@pytest.mark.parametrize("value", [0, 0.25, 1, Fraction(1, 2), np.float32(0.5), np.int64(1)])
def test_number_takes_reals(value: Any) -> None:
    result = number("x", value, minimum=0.0, maximum=1.0)
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize(
    ("value", "options", "rule"),
    [
        (np.nan, {}, "[-inf, inf]; got nan"),
        (np.inf, {}, "[-inf, inf]; got inf"),
        (-0.1, {"minimum": 0.0}, "[0, inf]; got -0.1"),
        (1.5, {"minimum": 0.0, "maximum": 1.0}, "[0, 1]; got 1.5"),
        (0.0, {"minimum": 0.0, "strict": True}, "(0, inf); got 0.0"),
        (1, {"maximum": 1.0, "strict": True}, "(-inf, 1); got 1"),
    ],
)
def test_number_refuses(value: Any, options: dict[str, Any], rule: str) -> None:
    message = re.escape(f"x must be finite and in {rule}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        number("x", value, **options)


@pytest.mark.parametrize("value", [True, "1", None, [1.0], 1j])
def test_number_refuses_other_types(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^x must be a number; got "):
        number("x", value)


def test_choice() -> None:
    assert choice("unit", "token", ("sample", "token")) == "token"
    with pytest.raises(ValueError, match=r"^unit must be one of sample, token; got 'word'\.$"):
        choice("unit", "word", ("sample", "token"))


@given(K=st.integers(1, 1000), part=st.floats(0.0, 1.0))
def test_lower_share_takes_what_all_domains_can_keep(K: int, part: float) -> None:
    assert lower_share("lower", part / K, K) == part / K
    for odd in (np.nextafter(1.0 / K, 2.0), -np.nextafter(0.0, 1.0)):
        with pytest.raises(ValueError, match=r"^lower must be in \[0, 1/K\]; got "):
            lower_share("lower", odd, K)


def test_lower_share_names_the_way_out() -> None:
    message = "lower must be in [0, 1/K]; got 0.4 with K=3. Choose at most 0.333333."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lower_share("lower", 0.4, 3)
