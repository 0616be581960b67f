"""transfer_weights: a certificate, a general solver, and the limits that must hold.

Also tests ``solvers/_interior.py``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from adaptmix._checks import FloatArray
from adaptmix.solvers import TransferSolution, transfer_weights

TOLERANCE = 1e-9
ROUNDING = 64 * np.finfo(np.float64).eps
seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, *, domains: int | None = None, bounds: bool = True) -> dict[str, Any]:
    """Draw a problem whose coefficients spread over up to sixteen orders of magnitude."""
    rng = np.random.default_rng(seed)
    K = domains or int(rng.integers(1, 12))
    mu = rng.standard_normal((K, int(rng.integers(1, 2 * K + 1)))) * 10 ** rng.uniform(-4, 4)
    mu *= 10 ** (rng.uniform(0, 1.5) * rng.standard_normal((K, 1)))
    if rng.random() < 0.2:
        mu[rng.integers(K)] = mu[0]  # a copy
    gram = mu @ mu.T
    if rng.random() < 0.3:  # estimates need not be definite
        noise = rng.standard_normal((K, K)) * np.abs(gram).max() * 0.3
        gram = gram + noise + noise.T
    importance = rng.random(K) * (rng.random(K) < 0.5)
    importance[rng.integers(K)] += 1.0
    data = {
        "grad_gram": gram,
        "grad_var": 10 ** rng.uniform(-2, 2, K) * (rng.random(K) > 0.1),
        "importance": importance,
        "sizes": np.where(rng.random(K) < 0.1, np.inf, np.round(10 ** rng.uniform(0, 6, K))),
        "draws": math.inf if rng.random() < 0.1 else float(10 ** rng.uniform(0, 6)),
    }
    if rng.random() < 0.3:
        data["gram_error"] = np.abs(gram).max() * 10 ** rng.uniform(-6, 1, K)
    if bounds and rng.random() < 0.4:
        inner = rng.dirichlet(np.ones(K))
        data["weight_bounds"] = (rng.random() * inner, inner + rng.random() * (1 - inner))
    if bounds and rng.random() < 0.6:
        inner = rng.dirichlet(np.ones(K))
        data["share_bounds"] = (rng.random() * inner, inner + rng.random() * (1 - inner))
    return data


def centred(gram: FloatArray) -> FloatArray:
    """Return the nearest semi-definite matrix on the directions of sum 0."""
    K = gram.shape[0]
    off = np.eye(K) - 1 / K
    values, vectors = np.linalg.eigh(off @ ((gram + gram.T) / 2) @ off)
    values[values < K * np.finfo(np.float64).eps * np.abs(gram).max()] = 0.0
    nearest: FloatArray = (vectors * values) @ vectors.T
    return nearest


def gap(slope: FloatArray, at: FloatArray, lower: FloatArray, upper: FloatArray) -> float:
    """Return how far a linear function can fall on the simplex with bounds."""
    best, rest = lower.copy(), 1.0 - lower.sum()
    for i in np.argsort(slope, kind="stable"):
        best[i] += (take := min(rest, upper[i] - best[i]))
        rest -= take
    return float(slope @ (at - best))


def residual(solution: TransferSolution, **data: Any) -> float:
    """Return a bound on how far a solution's error is above the least, relative to that error.

    The program is convex in (α, p) together, so that the fall of its linearisation bounds the
    distance to the optimum. Where α = p = 0 the slope by p may be any −u²/4r² for a slope u by α:
    it is chosen so that p has the common price. The derivative of the bias may be taken at another
    point α + δ, which costs δᵀGδ; δ corrects what rounding of α does to a large G.
    """
    alpha, p = solution.objective, solution.sampling
    K = alpha.size
    v_sq, pi = np.asarray(data["grad_var"]), np.asarray(data["importance"], dtype=float)
    pi = pi / pi.sum()
    raw = np.asarray(data["grad_gram"], dtype=float)
    gram = centred(raw) + np.diag(data.get("gram_error", np.zeros(K)))
    lower, upper = (np.broadcast_to(b, K) for b in data.get("weight_bounds", (0.0, 1.0)))
    least, most = (np.broadcast_to(b, K) for b in data.get("share_bounds", (0.0, 1.0)))
    drawn = v_sq / data.get("draws", math.inf)
    assert (p[(alpha > 0.0) & (drawn > 0.0)] > 0.0).all()
    ratio = np.divide(alpha, p, out=np.zeros(K), where=p > 0.0)
    price = float((drawn * ratio**2).min(where=p > least, initial=np.inf))
    price = price if price < np.inf else 0.0
    at_zero = (p == 0.0) & (alpha == 0.0)
    by_alpha = 2 * drawn * ratio + 2 * v_sq / data["sizes"] * alpha
    by_alpha[at_zero] = 2 * np.sqrt(drawn[at_zero] * price)
    by_share = np.where(at_zero, -price * (drawn > 0.0), -drawn * ratio**2)
    value = solution.error
    slope = by_alpha + 2 * gram @ (alpha - pi)
    free = np.flatnonzero((alpha > lower) & (alpha < upper))
    gaps = [gap(slope, alpha, lower, upper)]
    if free.size:
        delta = np.zeros(K)
        off = slope[free].mean() - slope[free]
        delta[free] = np.linalg.lstsq(2 * gram[np.ix_(free, free)], off, rcond=1e-15)[0]
        moved = gap(slope + 2 * gram @ delta, alpha, lower, upper)
        gaps.append(moved + float(delta @ gram @ delta))
    # What float64 tells of G itself, and of an error that may be exactly 0.
    spread = v_sq * (1 / np.asarray(data["sizes"]) + 1 / data.get("draws", math.inf))
    allowed = (
        ROUNDING * (float(max(np.abs(raw).max(), gram.diagonal().max())) + float(spread.mean()))
        + 1e-300
    )
    short = max(min(gaps) + gap(by_share, p, least, most) - allowed, 0.0) / (value + allowed)
    outside = max(
        (lower - alpha).max(), (alpha - upper).max(), (least - p).max(), (p - most).max(),
        abs(alpha.sum() - 1.0), abs(p.sum() - 1.0),
    )  # fmt: skip
    return float(max(short, outside))


@settings(max_examples=400)
@given(seeds)
def test_certificate(seed: int) -> None:
    data = problem(seed)
    assert residual(transfer_weights(**data), **data) <= TOLERANCE


@pytest.mark.parametrize("seed", range(10))
def test_no_general_solver_finds_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((4, 3))
    data = problem(seed, domains=4) | {"grad_gram": root @ root.T, "draws": 10 ** rng.uniform(0, 3)}
    data["grad_var"] = 10 ** rng.uniform(-1, 1, 4)
    pi = data["importance"] / data["importance"].sum()

    def error(x: FloatArray) -> float:
        alpha, p = x[:4], np.maximum(x[4:], 1e-12)
        away = alpha - pi
        spread = alpha**2 * data["grad_var"]
        variance = (spread * (1 / data["sizes"] + 1 / data["draws"] / p)).sum()
        doubt = away**2 @ data.get("gram_error", np.zeros(4))
        return float(away @ data["grad_gram"] @ away + doubt + variance)

    lower, upper = (np.broadcast_to(b, 4) for b in data.get("weight_bounds", (0.0, 1.0)))
    least, most = (np.broadcast_to(b, 4) for b in data.get("share_bounds", (0.0, 1.0)))
    found = minimize(
        error,
        np.full(8, 0.25),
        method="SLSQP",
        bounds=[*zip(lower, upper, strict=True), *zip(np.maximum(least, 1e-9), most, strict=True)],
        constraints=[
            {"type": "eq", "fun": lambda x: x[:4].sum() - 1},
            {"type": "eq", "fun": lambda x: x[4:].sum() - 1},
        ],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    ours = transfer_weights(**data)
    both = np.concatenate([ours.objective, ours.sampling])
    assert ours.error == pytest.approx(error(both), rel=1e-9)
    assert ours.error <= found.fun * (1 + 1e-7)


@settings(max_examples=50)
@given(seeds, st.integers(-60, 60))
def test_the_scale_of_all_gradients_does_not_matter(seed: int, exponent: int) -> None:
    data = problem(seed)
    squares = data.keys() & {"grad_gram", "grad_var", "gram_error"}
    scaled = {name: data[name] * 4.0**exponent for name in squares}
    solution, other = transfer_weights(**data), transfer_weights(**data | scaled)
    np.testing.assert_allclose(other.objective, solution.objective, atol=1e-12)
    assert other.error == pytest.approx(solution.error * 4.0**exponent, rel=1e-9)


@settings(max_examples=50)
@given(seeds)
def test_large_bias_in_every_direction_leaves_what_counts(seed: int) -> None:
    data = problem(seed, bounds=False)
    K = data["importance"].size
    data |= {"grad_gram": 1e9 * np.eye(K), "grad_var": np.ones(K), "gram_error": None}
    pi = data["importance"] / data["importance"].sum()
    np.testing.assert_allclose(transfer_weights(**data).objective, pi, atol=1e-6)


@settings(max_examples=50)
@given(seeds)
def test_without_bias_and_with_endless_draws_weights_are_rows_over_variance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    K = int(rng.integers(1, 20))
    v_sq, n = rng.lognormal(0.0, 2.0, (2, K))
    got = transfer_weights(np.full((K, K), 5.0), v_sq, importance=rng.random(K), sizes=n).objective
    np.testing.assert_allclose(got, n / v_sq / (n / v_sq).sum(), atol=1e-9)


def test_few_draws_take_the_quiet_domain() -> None:
    got = transfer_weights(
        np.eye(3), [4.0, 1.0, 9.0], importance=[1, 0, 0], sizes=[100] * 3, draws=1e-9
    )
    np.testing.assert_allclose(got.objective, [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(got.sampling, [0, 1, 0], atol=1e-6)


@settings(max_examples=50)
@given(st.floats(1.0, 1e4), st.floats(1.0, 1e4), seeds)
def test_copies_share_their_weight_by_rows(first: float, second: float, seed: int) -> None:
    mu = np.random.default_rng(seed).standard_normal((2, 6))
    data: dict[str, Any] = {"importance": [1, 0, 0], "sizes": [20, first, second]}
    gram = (copies := mu[[0, 1, 1]]) @ copies.T
    got = transfer_weights(gram, [3.0, 2.0, 2.0], **data)
    _, one, other = got.objective
    # Another split of the two costs δ² v² (1/n + 1/m): the certificate bounds what it may cost.
    away = one - (one + other) * first / (first + second)
    assert away**2 * 2.0 * (1.0 / first + 1.0 / second) <= 1e-9 * got.error
    whole = transfer_weights(mu @ mu.T, [3.0, 2.0], importance=[1, 0], sizes=[20, first + second])
    assert whole.error == pytest.approx(got.error, rel=2e-9)


def test_the_same_mean_and_more_rows_are_preferred_to_the_target() -> None:
    got = transfer_weights(np.ones((2, 2)), [1.0, 1.0], importance=[1, 0], sizes=[10, 990])
    np.testing.assert_allclose(got.objective, [0.01, 0.99], atol=1e-9)


def test_what_is_not_known_well_moves_less_weight() -> None:
    data: dict[str, Any] = {"importance": [1, 0], "sizes": [10, 90], "grad_var": [1.0, 1.0]}
    known = transfer_weights(np.ones((2, 2)), **data)
    doubtful = transfer_weights(np.ones((2, 2)), gram_error=[0.1, 0.1], **data)
    assert known.objective[1] == pytest.approx(0.9)
    # (1 − x)²/10 + x²/90 + x² (.1 + .1)
    assert doubtful.objective[1] == pytest.approx(0.1 / (0.1 + 1 / 90 + 0.2))


@settings(max_examples=50)
@given(seeds)
def test_what_domains_help_adds_up_to_the_error_taken_away(seed: int) -> None:
    data = problem(seed, bounds=False)
    solution = transfer_weights(**data)
    n, v_sq, pi = data["sizes"], data["grad_var"], data["importance"] / data["importance"].sum()
    before = (pi**2 * v_sq / n).sum() + (pi @ np.sqrt(v_sq)) ** 2 / data["draws"]
    assert (solution.helps[solution.objective <= pi] == 0.0).all()
    taken = 1.0 - solution.error / before if before > 0.0 else 0.0
    if taken > 1e-6:
        assert solution.helps.sum() == pytest.approx(taken, rel=1e-5)


def test_order_does_not_matter() -> None:
    data = problem(5, domains=9, bounds=False)
    order = np.random.default_rng(0).permutation(9)
    by_domain = data.keys() & {"grad_var", "importance", "sizes", "gram_error"}
    turned = {name: data[name][order] for name in by_domain} | {
        "grad_gram": data["grad_gram"][np.ix_(order, order)],
        "draws": data["draws"],
    }
    expected = transfer_weights(**data).objective[order]
    np.testing.assert_allclose(transfer_weights(**turned).objective, expected, atol=1e-9)


def test_one_domain_has_all() -> None:
    got = transfer_weights([[3.0]], [0.0], importance=[2.0], sizes=[math.inf])
    assert (got.objective[0], got.sampling[0], got.error) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("bounds", [True, False])
def test_a_thousand_domains(bounds: bool) -> None:
    data = problem(3, domains=1000, bounds=bounds)
    assert residual(transfer_weights(**data), **data) <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"importance": [0.0, 0.0]}, ValueError, "importance must be > 0 for at least one domain"),
        ({"grad_gram": [[1.0]]}, ValueError, r"grad_gram must have shape \(2, 2\); got \(1, 1\)"),
        (
            {"grad_gram": [[1.0, np.nan], [0.0, 1.0]]},
            ValueError,
            r"grad_gram must be finite; got nan at \(0, 1\)",
        ),
        ({"grad_var": [1.0, -1.0]}, ValueError, "grad_var must be >= 0; got -1 at 1"),
        ({"gram_error": [1.0, -1.0]}, ValueError, "gram_error must be >= 0; got -1 at 1"),
        ({"sizes": [0, 5]}, ValueError, "sizes must be > 0; got 0 at 0"),
        ({"draws": 0.0}, ValueError, r"draws must be finite and in \(0, inf\); got 0"),
        ({"weight_bounds": (0.6, 1.0)}, ValueError, "weight_bounds: lower must add up"),
        ({"share_bounds": (0.0, 0.3)}, ValueError, "share_bounds: upper must add up"),
        ({"share_bounds": 0.3}, TypeError, r"share_bounds must be a pair \(lower, upper\)"),
    ],
)
def test_messages(change: dict[str, Any], error: type[Exception], message: str) -> None:
    data: dict[str, Any] = {
        "grad_gram": np.eye(2), "grad_var": [1.0, 1.0], "importance": [1, 0], "sizes": [5, 5]
    }  # fmt: skip
    with pytest.raises(error, match=message):
        transfer_weights(**(data | change))
