"""Losses and noise of held-out rows, as running estimates.

Also tests ``_credibility.py``.
"""

from __future__ import annotations

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix.state import _checkpoint as checkpoint
from adaptmix.statistics._held_out import HeldOutSums
from adaptmix.statistics._running import RunningStatistics
from adaptmix.statistics._sums import FIELDS, NOISE

ONES = np.ones(2)


def rows(number: float, value: float = 1.0) -> dict[str, FloatArray]:
    """So many rows of the first domain with this loss and residual."""
    count = np.array([number, 0.0])
    return {
        "count": count,
        "loss": value * count,
        "residual": value * count,
        "expected": count,
        "noise_rows": count,
        "residual_sq": value**2 * count,
        "residual_expected": value * count,
        "expected_sq": count,
    }


def test_few_rows_are_forgotten_by_rows_and_many_by_steps() -> None:
    few, many = (HeldOutSums(np.array([1e6, 1e6]), half_life=50.0) for _ in range(2))
    for step in (0, 100):
        few.add(step, **rows(2.0))
        many.add(step, **rows(640.0))
    np.testing.assert_allclose(few["count"], [2.0 * 2.0 ** (-2.0 / 32.0) + 2.0, 0.0])
    np.testing.assert_allclose(many["count"], [640.0 * 2.0 ** (-100.0 / 50.0) + 640.0, 0.0])
    restored = HeldOutSums(np.array([1e6, 1e6]), half_life=50.0)
    restored.load_state_dict(checkpoint.decode(checkpoint.encode(few.state_dict())), name="x")
    for sums in (few, restored):
        sums.add(130, **rows(1.0, 5.0))
    for name, value in few.state_dict().items():
        np.testing.assert_array_equal(restored.state_dict()[name], value)


def test_rows_that_come_again_are_no_further_evidence() -> None:
    sums = HeldOutSums(np.array([16.0, 16.0]), half_life=50.0)
    for step in range(0, 4000, 10):
        sums.add(step, **rows(1.0))
    count = sums["count"][0]
    assert count > 40.0
    assert count**2 / sums.squares[0] == 16.0


def test_recorded_noise_goes_before_that_of_held_out_rows() -> None:

    def window(step: int, **values: FloatArray) -> None:
        table = dict.fromkeys(FIELDS, np.zeros(2)) | values
        running.add_losses(step, np.stack([table[name] for name in FIELDS]))

    running = RunningStatistics(2, half_life=10.0, held=np.array([16.0, 0.0]))
    window(10, residual=90.0 * ONES, expected=30.0 * ONES, noise_rows=30.0 * ONES)
    held = {f"held_out_{name}": value for name, value in rows(8.0, 1.0).items()}
    window(20, **held)
    stats = running.snapshot(20, lengths=ONES)
    np.testing.assert_allclose(stats.noise, [1.0, 1.0])  # both changed alike, as far as is known
    np.testing.assert_allclose(stats.noise_count, [30.0, 30.0])
    np.testing.assert_allclose(stats.holdout_loss, [1.0, np.nan])
    np.testing.assert_allclose(stats.holdout_count, [8.0, 0.0])
    recorded = {"recorded_residual": 8.0 * ONES, "recorded_expected": ONES}
    window(30, **recorded, recorded_noise_rows=ONES)
    window(40, **held)
    np.testing.assert_allclose(running.snapshot(40, lengths=ONES).noise, [8.0, 8.0])


# Of 2000 rows a relative variance of 2 is known to 2 ± 9 standard errors of .26, seeds fixed.
def test_scatter_is_the_relative_variance_of_noise_from_one_row() -> None:
    """Squares of normal residuals have 2; rows that differ in size alone add nothing."""
    rng = np.random.default_rng(0)
    size = rng.uniform(0.5, 2.0, (2, 2000))
    plain = 3.0 * rng.standard_normal((2, 2000)) ** 2
    for residual, expected, wanted in ((plain, np.ones_like(plain), 2.0), (3.0 * size, size, 0.0)):
        running = RunningStatistics(2, half_life=50.0, held=np.full(2, 2000.0))
        terms = (residual, expected, np.ones_like(size))
        products = (residual**2, residual * expected, expected**2)
        table = dict.fromkeys(FIELDS, np.zeros(2))
        for name, term in zip(NOISE, (*terms, *products), strict=True):
            table[f"held_out_{name}"] = term.sum(1)
        running.add_losses(1, np.stack([table[name] for name in FIELDS]))
        np.testing.assert_allclose(
            running.snapshot(1, lengths=ONES).noise_scatter, wanted, atol=0.6
        )
