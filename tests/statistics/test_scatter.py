"""How much squared gradient norms differ from row to row."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix._checks import FloatArray
from adaptmix.errors import StateError
from adaptmix.statistics._scatter import SquareScatter

# ‖g‖² of Gaussian gradients in three directions is chi-square: mean 3, variance 6.
TRUTH = 6.0 / 9.0


def observed(
    levels: FloatArray, rng: np.random.Generator, *, half_life: float, counts: tuple[int, ...]
) -> SquareScatter:
    """The scatter after one step per level of s², with so many rows of each domain."""
    scatter = SquareScatter(len(counts), half_life=half_life)
    for step, level in enumerate(levels):
        square = [level * float(rng.chisquare(3, n).sum()) for n in counts]
        scatter.add(step, count=np.array(counts, dtype=float), square=np.array(square))
    return scatter


def test_both_sums_are_unbiased_from_single_rows_on() -> None:
    """Their means over 2 000 runs of six steps are Var ‖g‖² and s⁴, weighted by the same levels.

    The ratio of means is off by less than 4.5 standard errors: a false alarm in 7e-6.
    """
    rng = np.random.default_rng(2)
    sums = []
    for _ in range(2000):
        found = observed(np.ones(6), rng, half_life=1e9, counts=(4, 9))._sums
        sums.append(found["difference"] - TRUTH * found["product"])
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert (np.abs(np.mean(sums, axis=0)) <= 4.5 * error).all()


@pytest.mark.parametrize("counts", [(1,), (16,)])
def test_it_is_the_truth_in_the_long_run(counts: tuple[int, ...]) -> None:
    """400 steps tell it to some 9 %; single rows, whose means are no bell curve, to 11 %."""
    scatter = observed(np.ones(400), np.random.default_rng(3), half_life=1e9, counts=counts)
    assert scatter.values[0] == pytest.approx(TRUTH, rel=0.35)
    assert scatter.freedom(399)[0] == pytest.approx(398 / 1.5)


def test_gradients_that_shrink_do_not_scatter_more() -> None:
    """s² falls by four orders of magnitude; about its mean over time it scatters 40 times more."""
    levels = np.geomspace(1e4, 1.0, 60)
    scatter = observed(levels, np.random.default_rng(4), half_life=20.0, counts=(16, 2))
    assert (scatter.values < 1.5 * TRUTH + 0.2).all()
    assert (scatter.values > 0.4 * TRUTH).all()


def test_late_steps_count_although_early_gradients_were_larger() -> None:
    """Rows are alike at first and differ later, when gradients are a hundredth as large."""
    rng = np.random.default_rng(5)
    scatter = SquareScatter(1, half_life=1e9)
    for step in range(100):
        rows = np.full(8, 100.0) if step < 10 else rng.chisquare(3, 8)
        scatter.add(step, count=np.array([8.0]), square=np.array([rows.sum()]))
    assert scatter.values[0] > 0.3 * TRUTH


def test_two_steps_tell_nothing_and_unseen_domains_stay_unknown() -> None:
    scatter = observed(np.ones(2), np.random.default_rng(0), half_life=5.0, counts=(4, 0))
    assert np.isnan(scatter.values).all()
    assert scatter.freedom(2).tolist() == [0.0, 0.0]


def test_a_state_goes_on_where_it_was_and_a_damaged_one_is_refused() -> None:
    rng = np.random.default_rng(1)
    one = observed(np.ones(9), rng, half_life=5.0, counts=(4, 2))
    other = SquareScatter(2, half_life=5.0)
    other.load_state_dict(one.state_dict(), name="scatter")
    for scatter in (one, other):
        scatter.add(9, count=np.array([3.0, 0.0]), square=np.array([2.0, 0.0]))
    np.testing.assert_array_equal(other.values, one.values)
    damaged = one.state_dict() | {"newest": np.full((3, 2), -1.0)}
    with pytest.raises(StateError, match=r"scatter\.newest"):
        SquareScatter(2, half_life=5.0).load_state_dict(damaged, name="scatter")
