"""Domains, Weights and DomainStats: what they accept, refuse and compute.

Also tests ``_text.py`` and ``_backward.py``.
"""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptmix._types import Domains, DomainStats, Weights
from tests.helpers_data import simplex, vectors


@given(importance=vectors(1e-300, 1e300))
def test_importance_is_normalised_at_any_scale(importance: list[float]) -> None:
    domains = Domains([f"d{i}" for i in range(len(importance))], importance, importance)
    assert len(domains) == len(importance)
    assert math.fsum(domains.importance) == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(domains.importance, simplex(importance), rtol=1e-13, atol=1e-300)
    assert domains.sizes.tolist() == importance


def test_importance_follows_sizes_when_left_out() -> None:
    assert Domains(("a", "b"), [30, 10]).importance.tolist() == [0.75, 0.25]


def test_sizes_may_be_infinite_when_importance_is_given() -> None:
    assert Domains(("a", "b"), [np.inf, 10], [1, 1]).sizes.tolist() == [np.inf, 10.0]
    with pytest.raises(ValueError, match=r"^importance must be given where sizes are infinite"):
        Domains(("a", "b"), [np.inf, 10])


@pytest.mark.parametrize(
    ("names", "sizes", "importance", "error", "message"),
    [
        ([], [], None, ValueError, "names must hold at least one domain; got none."),
        ("ab", [1, 1], None, TypeError, "names must be a sequence of strings; got 'ab'."),
        ([1, 2], [1, 1], None, TypeError, "names must be a sequence of strings; got [1, 2]."),
        (["a", "b", "a"], [1, 1, 1], None, ValueError, "names must differ; got a more than once."),
        (["a", "b"], [1, 0], None, ValueError, "sizes must be > 0; got 0 at 1."),
        (["a", "b"], [1], None, ValueError, "sizes must have one value per domain (2); got 1."),
        (["a", "b"], [1, 1], [1, -2], ValueError, "importance must be >= 0; got -2 at 1."),
        (
            ["a", "b"],
            [1, 1],
            [0, 0],
            ValueError,
            "importance must be > 0 for at least one domain; got 0 for all.",
        ),
        (["a"], [1], [math.nan], ValueError, "importance must be finite; got nan at 0."),
        (["a"], [1], [1, 1], ValueError, "importance must have one value per domain (1); got 2."),
    ],
)
def test_domains_refuses(
    names: Any, sizes: Any, importance: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Domains(names, sizes, importance)


@st.composite
def weights(draw: st.DrawFn) -> Weights:
    K = draw(st.integers(1, 6))
    positive = st.lists(st.floats(1e-6, 1e6), min_size=K, max_size=K)
    pi, p, w = (simplex(draw(positive)) for _ in range(3))
    return Weights(p, w / (pi @ w), pi)


@given(weights=weights())
def test_multipliers_make_the_gradient_unbiased(weights: Weights) -> None:
    """A sample of domain i comes with probability p and counts m: Σ p m L = Σ π w L for any L."""
    np.testing.assert_allclose(
        weights.sampling * weights.multipliers, weights.importance * weights.loss, rtol=1e-12
    )


def test_a_domain_without_loss_weight_may_go_unsampled() -> None:
    assert Weights([1.0, 0.0], [2.0, 0.0], [0.5, 0.5]).multipliers.tolist() == [1.0, 0.0]


def test_proportional_weights_change_nothing() -> None:
    weights = Weights.proportional([0.7, 0.3])
    assert weights.sampling.tolist() == weights.importance.tolist() == [0.7, 0.3]
    assert weights.loss.tolist() == weights.multipliers.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sampling", "loss", "importance", "message"),
    [
        ([0.5, 0.4], [1, 1], [0.5, 0.5], "Σ sampling must be 1; got 0.9. Normalise it first."),
        ([0.5, 0.5], [1, 1], [1, 1], "Σ importance must be 1; got 2. Normalise it first."),
        ([0.5, 0.5], [1, 2], [0.5, 0.5], "Σ importance · loss must be 1; got 1.5. Normalise"),
        ([1.5, -0.5], [1, 1], [0.5, 0.5], "sampling must be >= 0; got -0.5 at 1."),
        ([0.5, 0.5], [3, -1], [0.5, 0.5], "loss must be >= 0; got -1 at 1."),
        ([0.5, math.nan], [1, 1], [0.5, 0.5], "sampling must be finite; got nan at 1."),
        ([1.0], [1, 1], [0.5, 0.5], "sampling must have one value per domain (2); got 1."),
        ([1.0, 0.0], [1, 1], [0.5, 0.5], "sampling must be > 0 where importance · loss is; got 0"),
    ],
)
def test_weights_refuses(sampling: Any, loss: Any, importance: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Weights(sampling, loss, importance)


def test_an_auxiliary_domain_counts_in_the_objective_and_has_no_loss_weight() -> None:
    weights = Weights([0.5, 0.5], None, [1.0, 0.0], objective=[0.75, 0.25])
    assert weights.loss[0] == 0.75
    assert math.isnan(weights.loss[1])
    assert weights.multipliers.tolist() == [1.5, 0.5]
    assert weights.plain.tolist() == [0.75, 0.25]
    ignored = Weights([1.0, 0.0], [1.0, 7.0], [1.0, 0.0])
    assert ignored.objective.tolist() == ignored.multipliers.tolist() == [1.0, 0.0]
    assert ignored.plain.tolist() == [1.0, 0.0]


def test_weights_take_loss_or_objective() -> None:
    for loss, objective in (([1, 1], [0.5, 0.5]), (None, None)):
        with pytest.raises(TypeError, match=r"^Weights must be given either"):
            Weights([0.5, 0.5], loss, [0.5, 0.5], objective=objective)
    with pytest.raises(ValueError, match=r"^Σ objective must be 1"):
        Weights([0.5, 0.5], None, [1.0, 0.0], objective=[0.5, 0.25])


def test_weights_cannot_be_changed() -> None:
    weights = Weights.proportional([1.0])
    with pytest.raises(FrozenInstanceError):
        weights.loss = np.ones(1)  # type: ignore[misc]


def test_weights_as_dict() -> None:
    table = Weights([0.25, 0.75], [0.5, 1.5], [0.5, 0.5]).as_dict(["a", "b"])
    assert table == {
        "a": {
            "sampling": 0.25,
            "loss": 0.5,
            "importance": 0.5,
            "objective": 0.25,
            "multiplier": 1.0,
        },
        "b": {
            "sampling": 0.75,
            "loss": 1.5,
            "importance": 0.5,
            "objective": 0.75,
            "multiplier": 1.0,
        },
    }
    with pytest.raises(ValueError, match=r"^names must hold 2 names; got 1\.$"):
        Weights.proportional([0.5, 0.5]).as_dict(["a"])


COUNTS = {
    "count",
    "grad_mean_pairs",
    "seen",
    "age",
    "loss_count",
    "noise_count",
    "grad_freedom",
    "tokens_per_row",
    "grad_sq_freedom",
    "holdout_count",
}


def test_statistics_left_out_are_unknown() -> None:
    stats = DomainStats(grad_var=[1.0, 2.0])
    assert stats.num_domains == 2
    assert stats.grad_var.tolist() == [1.0, 2.0]
    assert np.isinf(stats.count).all()
    assert np.isinf(stats.age).all()
    for name in ("seen", "loss_count", "noise_count"):
        assert getattr(stats, name).tolist() == [0.0, 0.0], name
    for name in ("loss_mean", "loss_var", "noise", "grad_sq"):
        assert np.isnan(getattr(stats, name)).all(), name
    assert stats.grad_gram is None


def test_supplied_names_what_is_known_of_some_domain() -> None:
    stats = DomainStats(loss_mean=[np.nan, 1.0], noise=[np.nan, np.nan], grad_gram=np.eye(2))
    assert stats.supplied() == COUNTS | {"loss_mean", "grad_gram"}


def test_every_estimate_has_a_count_of_its_own_that_need_not_be_told() -> None:
    stats = DomainStats(count=[5.0, 6.0], seen=[3.0, 4.0], noise_count=[1.0, 2.0])
    assert stats.grad_freedom.tolist() == [5.0, 6.0]
    assert stats.loss_count.tolist() == [3.0, 4.0]
    assert stats.noise_count.tolist() == [1.0, 2.0]


def test_statistics_are_copied() -> None:
    values = np.ones(2)
    stats = DomainStats(noise=values)
    values[:] = 5.0
    assert stats.noise.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"noise": 1.0},
        {"noise": []},
        {"noise": [1.0], "seen": [1.0, 2.0]},
        {"noise": [[1.0]]},
        {"noise": [1.0, 2.0], "grad_gram": [[1.0]]},
        {"grad_gram": [[1.0, 2.0]]},
        {"grad_gram": [[[1.0]]]},
    ],
)
def test_statistics_of_odd_shapes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^DomainStats fields must have shape \(K,\)"):
        DomainStats(**fields)
