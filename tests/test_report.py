"""The table for people says what the weights and statistics are."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix.report import report
from adaptmix.types import DomainStats, Weights


def stated(text: str) -> tuple[float, float]:
    """The gain and the largest change of a loss weight that the last line states."""
    found = re.search(r"([0-9.]+) times smaller; .* by up to ([0-9.]+)\.$", text)
    assert found is not None, text
    return float(found[1]), float(found[2])


def test_every_domain_has_its_line() -> None:
    weights = Weights([0.25, 0.75], [0.5, 1.5], [0.5, 0.5])
    stats = DomainStats(seen=[12, 3456], grad_var=[4.0, 100.0], loss_mean=[1.25, 0.5])
    lines = report(["a", "long name"], weights, stats).splitlines()
    assert len(lines) == 4
    assert " ".join(lines[0].split()) == "domain seen share was loss weight grad std loss"
    assert " ".join(lines[1].split()) == "a 12 0.250 0.500 0.500 2 1.25"
    assert " ".join(lines[2].split()) == "long name 3456 0.750 0.500 1.500 10 0.5"
    assert stated(lines[3])[1] == 0.5


def test_columns_line_up() -> None:
    stats = DomainStats(seen=[5, 123456], grad_var=[1.0, 1.0], loss_mean=[1.0, 2.0])
    lines = report(["a", "b"], Weights.proportional([0.5, 0.5]), stats).splitlines()[:3]
    assert len({len(line) for line in lines}) == 1
    assert len({line.index("0.500") for line in lines[1:]}) == 1


def test_what_is_not_known_is_nan() -> None:
    stats = DomainStats(seen=[1, 0], grad_var=[1.0, np.nan])
    lines = report(["a", "b"], Weights.proportional([0.5, 0.5]), stats).splitlines()
    assert " ".join(lines[2].split()) == "b 0 0.500 0.500 1.000 nan nan"
    assert stated(lines[-1])[1] == 0.0


@given(
    grad_std=st.lists(st.floats(0.1, 10.0), min_size=3, max_size=3),
    part=st.floats(0.0, 1.0),
)
def test_the_gain_is_that_of_the_shares_in_the_table(grad_std: list[float], part: float) -> None:
    """Σ a²/π over Σ a²/p, for shares anywhere between importance and the optimum."""
    pi = np.array([0.2, 0.3, 0.5])
    a = pi * np.array(grad_std)
    p = (1.0 - part) * pi + part * a / a.sum()
    text = report("abc", Weights(p, np.ones(3), pi), DomainStats(grad_var=np.square(grad_std)))
    gain = float((a**2 / pi).sum() / (a**2 / p).sum())
    assert stated(text)[0] == pytest.approx(gain, abs=0.00501)
