"""Joint pays for the bias that its loss weights bring, by what mean gradients tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix import Domains, DomainStats, Weights
from adaptmix.policies import FGLS, Joint
from tests.policies.cases import run

INFO = Domains(("quiet", "noisy", "same"), [400, 400, 400], [1, 1, 1])
NOISE = np.array([1.0, 9.0, 1.0])
COMMON = np.ones((3, 3))


def weights(gram: Any, **fields: Any) -> Weights:
    stats = {"noise": NOISE, "grad_var": 20.0 * NOISE, "grad_gram": gram}
    return run(Joint(), INFO, DomainStats(**stats | fields))


def test_where_mean_gradients_agree_loss_weights_follow_noise_alone() -> None:
    expected = run(FGLS(), INFO, DomainStats(noise=NOISE)).loss
    np.testing.assert_allclose(weights(COMMON).loss, expected, atol=0.1)  # but for the doubt


def test_where_they_do_not_the_stated_objective_stays() -> None:
    apart = weights(COMMON + np.diag([0.0, 10.0, 0.0]))
    np.testing.assert_array_equal(apart.loss, 1.0)


def test_between_the_two_bias_holds_them_back() -> None:
    part = weights(COMMON + np.diag([0.0, 0.05, 0.0])).loss
    alone = weights(COMMON).loss
    assert alone[1] < part[1] < 1.0 < part[0] < alone[0]


def test_gradients_that_differ_in_length_alone_bring_no_bias() -> None:
    longer = np.array([1.0, 3.0, 1.0])
    np.testing.assert_allclose(
        weights(np.outer(longer, longer)).loss, weights(COMMON).loss, rtol=1e-6
    )


@pytest.mark.parametrize(
    "fields",
    [{"noise": np.ones(3), "grad_var": [1.0, 5.0, 25.0]}, {"grad_gram": None}],
    ids=["equal noise", "gradients not known"],
)
def test_the_stated_objective_stays_to_the_bit(fields: dict[str, Any]) -> None:
    np.testing.assert_array_equal(weights(np.diag([1.0, 2.0, 3.0]), **fields).loss, 1.0)
