"""Mean tokens per row: known, started and estimated."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix import checkpoint
from adaptmix.errors import RowLengthWarning
from adaptmix.statistics.lengths import RowLengths


def test_known_lengths_stay() -> None:
    lengths = RowLengths(2, [3.0, 5.0])
    assert lengths.started
    lengths.add(np.array([100.0, 1.0]), np.array([1.0, 1.0]))
    assert lengths.values.tolist() == [3.0, 5.0]


@pytest.mark.parametrize("known", [[1.0], [1.0, 0.0], [1.0, np.nan], [1.0, np.inf]])
def test_known_lengths_must_be_positive_numbers(known: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^tokens_per_row must "):
        RowLengths(2, known)


def test_without_anything_a_row_counts_one() -> None:
    lengths = RowLengths(2)
    assert not lengths.started
    assert lengths.values.tolist() == [1.0, 1.0]


def test_the_first_batch_starts_and_the_windows_take_over() -> None:
    lengths = RowLengths(3)
    lengths.start(np.array([12.0, 20.0, 0.0]), np.array([3.0, 1.0, 0.0]))
    assert lengths.started
    assert lengths.values.tolist() == [4.0, 20.0, 8.0]  # the last one from all rows: 32 / 4
    with pytest.warns(RowLengthWarning, match=r"^Rows differ in length and tokens_per_row"):
        lengths.add(np.array([30.0, 60.0, 0.0]), np.array([6.0, 4.0, 0.0]))
    assert lengths.values.tolist() == [5.0, 15.0, 9.0]
    lengths.add(np.array([6.0, 0.0, 7.0]), np.array([3.0, 0.0, 1.0]))  # warned once only
    assert lengths.values.tolist() == [4.0, 15.0, 7.0]


def test_rows_of_one_length_do_not_warn() -> None:
    lengths = RowLengths(2)
    lengths.start(np.array([8.0, 0.0]), np.array([2.0, 0.0]))
    for rows in ([3.0, 0.0], [2.0, 5.0], [0.0, 0.0]):
        lengths.add(4.0 * np.array(rows), np.array(rows))
    assert lengths.values.tolist() == [4.0, 4.0]


def test_estimates_do_not_forget() -> None:
    """T̄ is the mean over all rows so far, in whatever windows they came."""
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 9, (20, 2)).astype(float)
    tokens = rows * rng.integers(1, 9, (20, 2))
    lengths = RowLengths(2)
    lengths.start(tokens[0], rows[0])
    with pytest.warns(RowLengthWarning):
        for window in zip(tokens, rows, strict=True):
            lengths.add(*window)
    np.testing.assert_allclose(lengths.values, tokens.sum(0) / rows.sum(0), rtol=1e-14)


@pytest.mark.parametrize("warned", [False, True])
def test_state_round_trip(warned: bool) -> None:
    lengths = RowLengths(2)
    lengths.start(np.array([8.0, 4.0]), np.array([2.0, 1.0]))
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
