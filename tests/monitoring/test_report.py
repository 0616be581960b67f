"""The table for people says what the weights and statistics are."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix._types import DomainStats, Weights
from adaptmix.monitoring._report import _verdict, report


def stated(text: str) -> tuple[float, float]:
    """The gain and the largest change of a loss weight that the closing lines state."""
    found = re.search(r"([0-9.]+) times (smaller|larger).* by up to ([0-9.]+)\.\n", text)
    if found is None:
        same = re.search(r"leave the gradient's variance as it is.* by up to ([0-9.]+)\.\n", text)
        assert same is not None, text
        return 1.0, float(same[1])
    factor = float(found[1])
    return factor if found[2] == "smaller" else 1.0 / factor, float(found[3])


def test_every_domain_has_its_line() -> None:
    weights = Weights([0.25, 0.75], [0.5, 1.5], [0.5, 0.5])
    stats = DomainStats(seen=[12, 3456], grad_var=[4.0, 100.0], loss_mean=[1.25, 0.5])
    lines = report(["a", "long name"], weights, stats).splitlines()
    assert len(lines) == 5
    assert " ".join(lines[0].split()) == "domain seen share was loss weight grad std loss"
    assert " ".join(lines[1].split()) == "a 12 0.250 0.500 0.500 2 1.25"
    assert " ".join(lines[2].split()) == "long name 3456 0.750 0.500 1.500 10 0.5"
    assert stated(report(["a", "long name"], weights, stats))[1] == 0.5


def test_columns_line_up() -> None:
    stats = DomainStats(seen=[5, 123456], grad_var=[1.0, 1.0], loss_mean=[1.0, 2.0])
    lines = report(["a", "b"], Weights.proportional([0.5, 0.5]), stats).splitlines()[:3]
    assert len({len(line) for line in lines}) == 1
    assert len({line.index("0.500") for line in lines[1:]}) == 1


def test_what_is_not_known_is_a_dash() -> None:
    stats = DomainStats(seen=[1, 0], grad_var=[1.0, np.nan])
    text = report(["a", "b"], Weights.proportional([0.5, 0.5]), stats)
    lines = text.splitlines()
    assert " ".join(lines[2].split()) == "b 0 0.500 0.500 1.000 – –"
    assert stated(text) == (1.0, 0.0)


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
    # Less than 1 % is no difference.
    assert stated(text)[0] == pytest.approx(gain, abs=0.0101)


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        ([0.25, 0.75], "These shares make the gradient's variance 1.25 times smaller. Loss"),
        ([0.5, 0.5], "These shares leave the gradient's variance as it is with sampling by imp"),
        ([0.75, 0.25], "These shares make the gradient's variance 1.87 times larger than sampling"),
    ],
)
def test_better_no_difference_and_worse_have_words_of_their_own(
    sampling: list[float], sentence: str
) -> None:
    stats = DomainStats(grad_var=[1.0, 9.0])
    text = report("ab", Weights(sampling, [1.0, 1.0], [0.5, 0.5]), stats)
    assert sentence in text
    assert "0." not in sentence


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_it_says_which_objective_is_trained(unit: str) -> None:
    stats, weights = DomainStats(grad_var=[1.0, 9.0]), Weights.proportional([0.5, 0.5])
    adapting = report("ab", weights, stats, unit=unit).splitlines()[-1]
    observing = report("ab", weights, stats, unit=unit, observing=True).splitlines()[-1]
    assert (
        adapting.startswith("Trained on ") and f"loss weight times mean loss per {unit}" in adapting
    )
    assert observing.startswith("Observed only: trained on ")
    assert f"importance times mean loss per {unit}" in observing


def test_nothing_is_said_of_what_was_never_drawn() -> None:
    """As in a run that observes: it trains on the domains that count, and draws no others."""
    weights = Weights([0.5, 0.25, 0.25], [1.0, np.nan, np.nan], [1.0, 0.0, 0.0])
    figures = {"objective": np.array([1.0, 0.0, 0.0]), "helps": np.zeros(3)}
    seen = np.array([99.0, 0.0, 0.0])
    stats = DomainStats(seen=seen, grad_var=np.where(seen > 0.0, 4.0, np.nan))
    text = report(["mine", "b", "c"], weights, stats, figures=figures)
    assert "Not drawn, so nothing is known of what they would do: b, c." in text
    assert "Other domains take" not in text
    assert "Below 2%" not in text
    assert " ".join(text.splitlines()[2].split()) == "b 0 0.250 0.000 – 0.000 – – –"
    drawn = DomainStats(seen=[9, 9, 0], grad_var=[4.0, 4.0, np.nan])
    text = report(["mine", "b", "c"], weights, drawn, figures=figures)
    assert (
        "take 0% of the gradient's mean squared error away. Below 2% of the objective: b." in text
    )


def test_no_variance_is_no_gain_that_could_be_divided_by() -> None:
    assert _verdict(0.0) == "Sampling by importance has no variance, and these shares have some."
