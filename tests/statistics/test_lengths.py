"""Mean tokens per row: known, started and estimated."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix._checks import FloatArray
from adaptmix.errors import RowLengthWarning
from adaptmix.state import _checkpoint as checkpoint
from adaptmix.statistics._lengths import RowLengths


def table(*rows: list[int]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Tokens, rows and squared tokens of each domain's rows."""
    parts = [np.array(part, dtype=float) for part in rows]
    tokens, number, squares = ([f(p) for p in parts] for f in (np.sum, len, lambda p: p @ p))
    return np.array(tokens), np.array(number, dtype=float), np.array(squares)


def test_known_lengths_stay() -> None:
    lengths = RowLengths(2, [3.0, 5.0])
    assert lengths.started
    lengths.add(np.array([7.0, 4.0]), np.array([2.0, 1.0]))
    assert lengths.values.tolist() == [3.0, 5.0]


def test_known_lengths_that_are_not_those_of_the_rows() -> None:
    """Rows of 11 tokens whose first label is never predicted have 10."""
    lengths = RowLengths(2, [11.0, 11.0])
    lengths.add(np.array([10.0, 11.0]) * 1000, np.array([1000.0, 1000.0]))
    with pytest.warns(
        RowLengthWarning, match=r"^tokens_per_row says 11 for domain 0, and .* 10 on"
    ):
        lengths.add(np.array([10.0, 11.0]) * 9000, np.array([9000.0, 9000.0]))
    lengths.add(np.array([10.0, 11.0]) * 9000, np.array([9000.0, 9000.0]))  # once only


def test_known_lengths_are_not_doubted_by_chance() -> None:
    """Means of heavy-tailed lengths: 4.5 standard deviations of them, ten seeds."""
    for seed in range(10):
        rng, lengths = np.random.default_rng(seed), RowLengths(1, [20.0])
        for _ in range(60):
            lengths.add(np.array([rng.exponential(20.0, 32).sum()]), np.array([32.0]))


@pytest.mark.parametrize("known", [[1.0], [1.0, 0.0], [1.0, np.nan], [1.0, np.inf]])
def test_known_lengths_must_be_positive_numbers(known: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^tokens_per_row must "):
        RowLengths(2, known)


def test_without_anything_a_row_counts_one() -> None:
    lengths = RowLengths(2)
    assert not lengths.started
    assert lengths.values.tolist() == [1.0, 1.0]


def test_observed_runs_estimate() -> None:
    lengths = RowLengths(3)
    lengths.start(*table([4, 3, 5], [20], []), adapting=False)
    assert lengths.started
    assert lengths.values.tolist() == [4.0, 20.0, 8.0]  # the last one from all rows: 32 / 4
    with pytest.warns(RowLengthWarning, match=r"^Rows differ in length and tokens_per_row"):
        lengths.add(np.array([30.0, 60.0, 0.0]), np.array([6.0, 4.0, 0.0]))
    assert lengths.values.tolist() == [5.0, 15.0, 9.0]
    lengths.add(np.array([6.0, 0.0, 7.0]), np.array([3.0, 0.0, 1.0]))  # warned once only
    assert lengths.values.tolist() == [4.0, 15.0, 7.0]


def test_runs_that_adapt_do_not() -> None:
    with pytest.raises(ValueError, match=r'^tokens_per_row must be given with unit="token" where'):
        RowLengths(2).start(*table([4, 4], [5]), adapting=True)


def test_rows_of_one_length_need_nothing_else() -> None:
    lengths = RowLengths(2)
    lengths.start(*table([4, 4], []), adapting=True)
    for rows in ([3.0, 0.0], [2.0, 5.0], [0.0, 0.0]):
        lengths.add(4.0 * np.array(rows), np.array(rows))
    assert lengths.values.tolist() == [4.0, 4.0]
    with pytest.raises(ValueError, match=r"first batch had 4 tokens, and now the mean is 4\.25"):
        lengths.add(np.array([9.0, 8.0]), np.array([2.0, 2.0]))


def test_a_sample_is_refined_unless_it_is_the_whole_domain() -> None:
    lengths = RowLengths(3)
    lengths.sample(np.array([40.0, 30.0, 0.0]), np.array([4.0, 2.0, 5.0]), [False, True, False])
    assert lengths.values.tolist() == [10.0, 15.0, 70.0 / 11.0]
    lengths.add(np.array([40.0, 99.0, 5.0]), np.array([6.0, 3.0, 5.0]))
    assert lengths.values.tolist() == [8.0, 15.0, 0.5]


def test_estimates_do_not_forget() -> None:
    """T̄ is the mean over all rows so far, in whatever windows they came."""
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 9, (20, 2)).astype(float)
    tokens = rows * rng.integers(1, 9, (20, 2))
    lengths = RowLengths(2)
    lengths.start(tokens[0], rows[0], tokens[0] ** 2, adapting=False)
    with pytest.warns(RowLengthWarning):
        for window in zip(tokens, rows, strict=True):
            lengths.add(*window)
    np.testing.assert_allclose(lengths.values, tokens.sum(0) / rows.sum(0), rtol=1e-14)


@pytest.mark.parametrize("warned", [False, True])
def test_state_round_trip(warned: bool) -> None:
    lengths = RowLengths(2)
    lengths.start(*table([3, 5], [4]), adapting=False)
    if warned:
        with pytest.warns(RowLengthWarning):
            lengths.add(np.array([9.0, 5.0]), np.array([2.0, 1.0]))
    restored = RowLengths(2)
    restored.load_state_dict(checkpoint.decode(checkpoint.encode(lengths.state_dict())))
    assert restored.started
    assert restored.values.tolist() == lengths.values.tolist()
    if warned:
        restored.add(np.array([90.0, 5.0]), np.array([2.0, 1.0]))  # and does not warn again
    else:
        with pytest.warns(RowLengthWarning):
            restored.add(np.array([90.0, 5.0]), np.array([2.0, 1.0]))


def test_state_of_a_run_that_did_not_begin() -> None:
    restored = RowLengths(2)
    restored.load_state_dict(checkpoint.decode(checkpoint.encode(RowLengths(2).state_dict())))
    assert not restored.started


@pytest.mark.parametrize("kind", ["sampled", "constant"])
def test_states_of_other_kinds(kind: str) -> None:
    lengths, restored = RowLengths(2), RowLengths(2)
    if kind == "sampled":
        lengths.sample(np.array([40.0, 30.0]), np.array([4.0, 2.0]), [False, True])
    else:
        lengths.start(*table([4, 4], []), adapting=True)
    restored.load_state_dict(checkpoint.decode(checkpoint.encode(lengths.state_dict())))
    for each in (lengths, restored):
        each.add(np.array([8.0, 12.0]), np.array([2.0, 3.0]))
    assert restored.values.tolist() == lengths.values.tolist()
    if kind == "constant":
        with pytest.raises(ValueError, match="now the mean is 5"):
            restored.add(np.array([5.0, 0.0]), np.array([1.0, 0.0]))
