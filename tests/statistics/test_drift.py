"""Noise of a first pass over many rows, brought up to date by a few held-out rows."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix.statistics._drift import updated

NONE = np.nan


def test_where_all_domains_changed_alike_the_first_pass_tells_the_most() -> None:
    first, rows = np.array([1.0, 4.0, 0.5]), np.array([400.0, 300.0, 500.0])
    noise, behind = updated(first, rows, 0.25 * first, np.full(3, 16.0), scatter=5.0)
    np.testing.assert_allclose(noise, 0.25 * first)
    np.testing.assert_allclose(behind, rows)


def test_where_they_did_not_held_out_rows_tell_the_most() -> None:
    first, held = np.ones(3), np.array([0.1, 1.0, 9.0])
    noise, behind = updated(first, np.full(3, 400.0), held, np.full(3, 60.0), scatter=5.0)
    np.testing.assert_allclose(noise, held, rtol=0.25)
    assert ((behind > 55.0) & (behind < 75.0)).all()
    sure, _ = updated(first, np.full(3, 1e9), held, np.full(3, 1e9), scatter=5.0)
    np.testing.assert_allclose(sure, held, rtol=1e-6)


def test_what_is_known_of_one_kind_alone_is_taken_from_there() -> None:
    first = np.array([2.0, NONE, 1.0, NONE])
    held = np.array([NONE, 3.0, 4.0, NONE])
    first_rows, held_rows = np.array([10.0, 0.0, 20.0, 0.0]), np.array([0.0, 5.0, 6.0, 0.0])
    noise, behind = updated(first, first_rows, held, held_rows, scatter=5.0)
    # The others' change is all that is known of the first domain's.
    np.testing.assert_allclose(noise, [8.0, 3.0, 4.0, NONE])
    np.testing.assert_allclose(behind, [10.0, 5.0, 20.0, 0.0])
    alone = updated(first, first_rows, np.full(4, NONE), np.zeros(4), scatter=5.0)
    np.testing.assert_array_equal(alone[0], first)
    np.testing.assert_array_equal(alone[1], first_rows)


# Of 2000 simulated runs each, with fixed seeds; the errors differ by far more than their noise.
@pytest.mark.parametrize(("drift", "better_than"), [(0.0, 0.35), (0.3, 0.9), (1.5, 1.15)])
def test_ratios_of_noise_are_known_better_than_from_held_out_rows_alone_or_nearly_as_well(
    drift: float, better_than: float
) -> None:
    """Log noise changes by N(0, drift²) from domain to domain, and by the same for all."""
    rng = np.random.default_rng(0)
    errors: dict[str, list[float]] = {"held": [], "both": []}
    for _ in range(2000):
        before = np.exp(rng.normal(0.0, 0.5, 4))
        now = before * np.exp(rng.normal(-1.0, 0.5) + rng.normal(0.0, drift, 4))
        first = before * rng.chisquare(160, 4) / 160  # 400 rows of heavier tails
        held = now * rng.chisquare(8, 4) / 8  # 20 rows
        both, _ = updated(first, np.full(4, 400.0), held, np.full(4, 20.0), scatter=5.0)
        for name, estimate in (("held", held), ("both", both)):
            away = np.log(estimate / now)
            errors[name].append(float(np.square(away - away.mean()).mean()))
    assert np.mean(errors["both"]) < better_than * np.mean(errors["held"])
