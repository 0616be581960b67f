"""Running estimates against NumPy written out: unbiased, forgetful, and never forgotten.

Also tests ``statistics/_discounted.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix.state import _checkpoint as checkpoint
from adaptmix.statistics._running import RunningStatistics
from adaptmix.statistics._sums import FIELDS
from tests.helpers_data import SIGMAS
from tests.statistics.evidence import gradient_sums, gram, loss_sums, noise_sums, ones

FOREVER = 1e12  # a half-life after which nothing is forgotten in a test
COUNTS = ("loss_count", "noise_count", "grad_freedom")
ESTIMATES = ("loss_mean", "loss_var", "noise", "grad_var", "grad_sq")


NONE = np.zeros(0)


def test_one_window_is_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    losses = [rng.normal(2.0, 1.0, n) for n in (5, 9)]
    grads = [rng.normal(1.0, 2.0, (n, 4)) for n in (6, 3)]
    running = RunningStatistics(2, half_life=3.0, gram=True)
    running.add_losses(1, loss_sums(*losses))
    running.add_gradients(1, **gradient_sums(*grads))
    stats = ones(running, 1)
    assert stats.seen.tolist() == [5.0, 9.0]
    assert stats.count.tolist() == [6.0, 3.0]
    assert stats.age.tolist() == [0.0, 0.0]
    expected = {
        "loss_mean": [x.mean() for x in losses],
        "loss_var": [x.var(ddof=1) for x in losses],
        "noise": [np.square(x).mean() for x in losses],
        "grad_var": [g.var(axis=0, ddof=1).sum() for g in grads],
        "grad_sq": [np.square(g).sum(1).mean() for g in grads],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(stats, name), values, rtol=1e-12, err_msg=name)
    for i in range(2):
        for j in range(2):
            pairs = [
                a @ b
                for k, a in enumerate(grads[i])
                for m, b in enumerate(grads[j])
                if i != j or k != m
            ]
            assert gram(stats)[i, j] == pytest.approx(np.mean(pairs), rel=1e-12)


def test_estimates_are_unbiased() -> None:
    """Means over 3000 windows of few samples lie on the truth.

    False alarm: 7e-6 per number (4.5 standard errors, two-sided), 1e-4 for all 16 of them.
    """
    rng = np.random.default_rng(1)
    mean, deviation, P = np.array([1.0, -0.5]), np.array([0.7, 2.0]), 6
    mu = np.stack([np.full(P, 0.5), np.linspace(-1.0, 1.0, P)])
    found: dict[str, list[Any]] = {name: [] for name in (*ESTIMATES, "gram")}
    for _ in range(3000):
        counts = rng.integers(2, 5, 2)
        running = RunningStatistics(2, half_life=1.0, gram=True)
        running.add_losses(
            1, loss_sums(*(rng.normal(mean[i], deviation[i], counts[i]) for i in (0, 1)))
        )
        grads = [mu[i] + deviation[i] * rng.normal(size=(counts[i], P)) for i in (0, 1)]
        running.add_gradients(1, **gradient_sums(*grads))
        stats = ones(running, 1)
        for name in ESTIMATES:
            found[name].append(getattr(stats, name))
        found["gram"].append(gram(stats).ravel())
    truth = {
        "loss_mean": mean,
        "loss_var": deviation**2,
        "noise": mean**2 + deviation**2,
        "grad_var": P * deviation**2,
        "grad_sq": P * deviation**2 + np.square(mu).sum(1),
        "gram": (mu @ mu.T).ravel(),
    }
    for name, values in found.items():
        table = np.array(values)
        error = table.std(0, ddof=1) / np.sqrt(len(table))
        assert (np.abs(table.mean(0) - truth[name]) < SIGMAS * error).all(), name


def test_a_domain_that_is_not_seen_keeps_its_estimates_for_ever() -> None:
    rng = np.random.default_rng(2)
    running = RunningStatistics(2, half_life=2.0, gram=True)
    running.add_losses(1, loss_sums(rng.normal(size=4), rng.normal(size=4)))
    running.add_gradients(1, **gradient_sums(rng.normal(size=(3, 2)), rng.normal(size=(3, 2))))
    before = ones(running, 1)
    nothing = np.zeros((0, 2))
    for step in (2, 10, 1_000_000):
        running.add_losses(step, loss_sums(rng.normal(size=4), NONE))
        running.add_gradients(step, **gradient_sums(rng.normal(size=(3, 2)), nothing))
    after = ones(running, 1_000_000)
    for name in ESTIMATES:
        assert getattr(after, name)[1] == getattr(before, name)[1], name
        assert getattr(after, name)[0] != getattr(before, name)[0], name
    assert gram(after)[1, 1] == gram(before)[1, 1]
    assert gram(after)[0, 1] == gram(before)[0, 1]
    assert after.seen.tolist() == [16.0, 4.0]
    assert after.age.tolist() == [0.0, 999_999.0]
    assert after.count[1] == 0.0  # nobody vouches for it any more


def test_a_domain_never_seen_is_unknown() -> None:
    running = RunningStatistics(2, half_life=2.0, gram=True)
    empty = ones(running, 0)
    assert empty.grad_gram is None
    counts = {
        "count",
        "grad_freedom",
        "grad_mean_pairs",
        "loss_count",
        "noise_count",
        "tokens_per_row",
        "grad_sq_freedom",
        "holdout_count",
    }
    assert empty.supplied() == {"seen", "age"} | counts
    running.add_losses(3, loss_sums(np.array([1.0, 3.0]), NONE))
    running.add_gradients(3, **gradient_sums(np.eye(2), np.zeros((0, 2))))
    stats = ones(running, 5)
    for name in ESTIMATES:
        assert np.isnan(getattr(stats, name)).tolist() == [False, True], name
    assert stats.age.tolist() == [2.0, np.inf]
    assert stats.seen.tolist() == [2.0, 0.0]
    assert np.isnan(gram(stats)).tolist() == [[False, True], [True, True]]


def test_one_sample_tells_a_mean_but_no_variance() -> None:
    running = RunningStatistics(1, half_life=2.0, gram=True)
    running.add_losses(1, loss_sums(np.array([3.0])))
    running.add_gradients(1, **gradient_sums(np.array([[3.0, 4.0]])))
    stats = ones(running, 1)
    assert stats.loss_mean.tolist() == [3.0]
    assert stats.grad_sq.tolist() == [25.0]
    assert np.isnan([stats.loss_var[0], stats.grad_var[0]]).all()
    assert stats.grad_gram is None


@pytest.mark.parametrize("half_life", [1.0, 7.5, FOREVER])
def test_evidence_counts_half_after_a_half_life(half_life: float) -> None:
    """Every sum is Σ 2^(−age/half-life) · evidence, ages counted from the newest evidence."""
    rng = np.random.default_rng(3)
    running = RunningStatistics(1, half_life=half_life, gram=True)
    steps = [1, 2, 6, 14]
    losses = [rng.normal(size=n) for n in (3, 1, 8, 4)]
    grads = [rng.normal(size=(n, 3)) for n in (2, 5, 3, 4)]
    for step, x, g in zip(steps, losses, grads, strict=True):
        running.add_losses(step, loss_sums(x))
        running.add_gradients(step, **gradient_sums(g))
    faded = np.array([0.5 ** ((14 - step) / half_life) for step in steps])

    def mean(tops: list[float], bottoms: list[float]) -> float:
        return float((faded @ np.array(tops)) / (faded @ np.array(bottoms)))

    scatters = [float(np.square(g - g.mean(0)).sum()) for g in grads]
    products = [float(np.square(g.sum(0)).sum() - np.square(g).sum()) for g in grads]
    expected = {
        "loss_mean": mean([x.sum() for x in losses], [len(x) for x in losses]),
        "loss_var": mean(
            [float(np.square(x - x.mean()).sum()) for x in losses], [len(x) - 1 for x in losses]
        ),
        "noise": mean([float(np.square(x).sum()) for x in losses], [len(x) for x in losses]),
        "grad_var": mean(scatters, [len(g) - 1 for g in grads]),
        "grad_sq": mean([float(np.square(g).sum()) for g in grads], [len(g) for g in grads]),
    }
    stats = ones(running, 20)
    for name, value in expected.items():
        assert getattr(stats, name)[0] == pytest.approx(value, rel=1e-12), name
    pairs = mean(products, [len(g) * (len(g) - 1) for g in grads])
    assert gram(stats)[0, 0] == pytest.approx(pairs, rel=1e-12)
    assert stats.grad_mean_sq[0] == pytest.approx(pairs, rel=1e-12)
    known = 0.5 ** (6 / half_life) * (faded @ np.array([2, 20, 6, 12]))
    assert stats.grad_mean_pairs[0] == pytest.approx(known, rel=1e-12)
    # What stands behind an estimate fades with time itself, too: 6 steps since the last.
    behind = 0.5 ** (6 / half_life) * (faded @ np.array([2, 5, 3, 4]))
    assert stats.count[0] == pytest.approx(behind, rel=1e-12)


def test_a_drifting_mean_is_no_variance() -> None:
    # Samples of variance 1 (losses) and 2 (gradients) around a mean that moves by 100 per window.
    # False alarm: 7e-6 per number; 300 degrees of freedom each, Var(χ²/f) = 2/f per dimension.
    rng = np.random.default_rng(4)
    running = RunningStatistics(1, half_life=FOREVER, gram=True)
    for step in range(100):
        running.add_losses(step, loss_sums(100.0 * step + rng.normal(size=4)))
        running.add_gradients(step, **gradient_sums(100.0 * step + rng.normal(size=(4, 2))))
    stats = ones(running, 100)
    assert abs(stats.loss_var[0] - 1.0) < SIGMAS * np.sqrt(2.0 / 300.0)
    assert abs(stats.grad_var[0] - 2.0) < SIGMAS * np.sqrt(2 * 2.0 / 300.0)
    assert stats.loss_mean[0] == pytest.approx(4950.0, abs=1.0)


def test_variances_are_never_negative() -> None:
    running = RunningStatistics(1, half_life=2.0, gram=True)
    x = np.full(3, 0.1)
    running.add_losses(1, loss_sums(x))
    running.add_gradients(1, **gradient_sums(np.full((3, 2), 0.1)))
    stats = ones(running, 1)
    assert stats.loss_var[0] == pytest.approx(0.0, abs=1e-15)
    assert stats.loss_var[0] >= 0.0
    assert stats.grad_var[0] == pytest.approx(0.0, abs=1e-15)
    assert stats.grad_var[0] >= 0.0


def test_statistics_per_token() -> None:
    """Rows of T independent tokens: mean T m, variance T v, mean gradient T μ."""
    rng = np.random.default_rng(5)
    rows, grads = rng.normal(size=6), rng.normal(size=(6, 3))
    running = RunningStatistics(2, half_life=2.0, gram=True)
    running.add_losses(1, loss_sums(rows, rows))
    running.add_gradients(1, **gradient_sums(grads, grads))
    row, token = ones(running, 1), running.snapshot(1, lengths=np.array([1.0, 4.0]))
    for name in ("loss_mean", "loss_var", "grad_var", "grad_sq"):
        np.testing.assert_allclose(getattr(token, name), getattr(row, name) / [1, 4], rtol=1e-14)
    np.testing.assert_allclose(gram(token), gram(row) / [[1, 4], [4, 16]], rtol=1e-14)
    for name in ("noise", "count", "seen", "age"):
        assert getattr(token, name).tolist() == getattr(row, name).tolist()


def test_skipped_losses_are_counted_and_not_averaged() -> None:
    sums = loss_sums(np.array([1.0, 3.0]))
    sums[FIELDS.index("rows")] += 2.0
    sums[FIELDS.index("skipped")] = 2.0
    running = RunningStatistics(1, half_life=2.0, gram=True)
    running.add_losses(1, sums)
    assert running.skipped == 2.0
    stats = ones(running, 1)
    assert stats.seen.tolist() == [4.0]
    assert stats.loss_mean.tolist() == [2.0]
    assert stats.loss_var.tolist() == [2.0]


def test_state_round_trip() -> None:
    rng = np.random.default_rng(6)
    running, restored = (RunningStatistics(2, half_life=2.0, gram=True) for _ in range(2))

    def add(target: RunningStatistics, step: int) -> None:
        rng = np.random.default_rng(step)
        target.add_losses(step, loss_sums(rng.normal(size=3), rng.normal(size=step % 3)))
        grads = gradient_sums(rng.normal(size=(3, 2)), rng.normal(size=(step % 2, 2)))
        target.add_gradients(step, **grads)

    for step in range(1, 5):
        add(running, step)
    running.add_noise(4, *noise_sums(rng.random(2), np.ones(2), np.array([5.0, 0.0])))
    some = noise_sums(rng.random(2), np.array([1.0, 0.0]), np.ones(2))
    running.add_noise(4, *some, recorded=True)
    running.skipped = 3.0
    restored.load_state_dict(checkpoint.decode(checkpoint.encode(running.state_dict())))
    for step in range(5, 9):
        add(running, step)
        add(restored, step)
    assert restored.skipped == 3.0
    left, right = ones(running, 10), ones(restored, 10)
    for name in ("count", "seen", "age", *COUNTS, *ESTIMATES):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    np.testing.assert_array_equal(gram(left), gram(right))


def test_recorded_noise_replaces_what_was_known() -> None:
    running = RunningStatistics(2, half_life=2.0, gram=True)
    four = np.full(2, 4.0)
    running.add_noise(1, *noise_sums(9 * four, four, four))
    two = np.array([2.0, 0.0])
    running.add_noise(2, *noise_sums(3.0 * two, two, np.full(2, 2.0)), recorded=True)
    assert ones(running, 2).noise.tolist() == [3.0, 9.0]
    assert ones(running, 4).noise_count.tolist() == [2.0, 4.0]
    running.add_noise(
        3, *noise_sums(four, four, four)
    )  # of rows trained on: from now on for the other alone
    mean = (36.0 / 2 + 4.0) / (4.0 / 2 + 4.0)
    np.testing.assert_allclose(ones(running, 3).noise, [3.0, mean], rtol=1e-14)
    # Four rows that count half and four that count whole are worth (2 + 4)² / (1 + 4) equal ones.
    np.testing.assert_allclose(ones(running, 3).noise_count, [2.0, 7.2], rtol=1e-14)
    running.add_noise(4, *noise_sums(0.5 * two, two, np.full(2, 2.0)), recorded=True)
    np.testing.assert_allclose(ones(running, 4).noise, [0.5, mean], rtol=1e-14)


@pytest.mark.parametrize(
    "part",
    [
        "seen",
        "last_seen",
        "losses",
        "noise",
        "noise_squares",
        "recorded",
        "held_out",
        "gradients",
        "gram",
    ],
)
def test_a_state_of_other_domains_is_refused(part: str) -> None:
    running, other = (
        RunningStatistics(2, half_life=2.0, gram=True),
        RunningStatistics(3, half_life=2.0),
    )
    state = {**running.state_dict(), part: other.state_dict()[part]}
    with pytest.raises(ValueError, match=r"must have "):
        RunningStatistics(2, half_life=2.0, gram=True).load_state_dict(state)


def test_squared_means_are_known_without_products_between_domains() -> None:
    """The norms of the sums are enough, and what is kept grows with K, not with K²."""
    rng = np.random.default_rng(5)
    small, whole = (RunningStatistics(3, half_life=4.0, gram=gram) for gram in (False, True))
    for step in range(1, 6):
        sums = gradient_sums(*(rng.normal(loc=1.0, size=(n, 4)) for n in (3, 1, step)))
        whole.add_gradients(step, **sums)
        small.add_gradients(step, **(sums | {"products": np.diagonal(sums["products"])}))
    one, other = ones(small, 8), ones(whole, 8)
    for name in ("grad_mean_sq", "grad_mean_pairs", "grad_var", "grad_sq"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_allclose(one.grad_mean_sq, np.diagonal(gram(other)), rtol=1e-14)
    assert one.grad_gram is None
    assert np.isnan(one.grad_mean_sq).tolist() == [False, True, False]


def test_squared_means_have_no_bias() -> None:
    """2 000 windows of three rows: off by less than four standard errors."""
    rng = np.random.default_rng(6)
    mean = np.array([0.6, -0.8, 0.0])
    found = []
    for _ in range(2000):
        running = RunningStatistics(1, half_life=4.0)
        rows = mean + 2.0 * rng.normal(size=(3, 3))
        sums = gradient_sums(rows)
        running.add_gradients(1, **(sums | {"products": np.diagonal(sums["products"])}))
        found.append(ones(running, 1).grad_mean_sq[0])
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - 1.0) < 4.0 * error
