"""Alarms and the operator's hand on the weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmix import CollapseWarning, Controller, Domains, RegressionWarning, Weights, policies
from adaptmix.errors import WarnOnce
from adaptmix.guards import Guards
from adaptmix.pins import Pins
from tests import runs


@pytest.mark.parametrize(
    ("sampling", "loss", "what"),
    [([0.985, 0.015], [1.0, 1.0], "Sampling"), ([0.5, 0.5], [1.99, 0.01], "The objective")],
)
def test_a_collapse_is_a_named_warning(sampling: list[float], loss: list[float], what: str) -> None:
    guards = Guards(("a", "b"), WarnOnce())
    with pytest.warns(CollapseWarning, match=f"{what} has collapsed onto 'a'"):
        guards.check_weights(Weights(sampling, loss, [0.5, 0.5]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guards.check_weights(Weights(sampling, loss, [0.5, 0.5]))  # once is enough


def test_what_the_user_asked_for_is_no_collapse() -> None:
    guards = Guards(("a", "b"), WarnOnce())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guards.check_weights(Weights.proportional([0.999, 0.001]))
        guards.check_weights(Weights([0.8, 0.2], [1.0, 1.0], [0.5, 0.5]))
        Guards(("a",), WarnOnce()).check_weights(Weights.proportional([1.0]))


def test_a_domain_that_gets_worse_twice_is_a_named_warning() -> None:
    guards = Guards(("a", "b"), WarnOnce())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a in (2.0, 1.0, 1.04, 1.2, 1.0, 1.2):  # an accident between good ones
            guards.check_losses({"a": a, "b": 3.0})
    resumed = Guards(("a", "b"), WarnOnce())
    resumed.load_state_dict(guards.state_dict())
    with pytest.warns(RegressionWarning, match="'a' has risen to 1.1, from 1 at best"):
        resumed.check_losses({"a": 1.1})


@given(data=st.data())
def test_pins_hold_and_the_others_keep_their_proportions(data: st.DataObject) -> None:
    K = data.draw(st.integers(3, 6))
    positive = st.lists(st.floats(0.05, 20.0), min_size=K, max_size=K)
    pi, p, w = (np.array(data.draw(positive)) for _ in range(3))
    domains = Domains([str(i) for i in range(K)], np.ones(K), pi)
    pi = domains.importance
    weights = Weights(p / p.sum(), w / (pi @ w), pi)
    share = data.draw(st.floats(0.01, 0.9))
    factor = data.draw(st.floats(0.0, 0.9)) / pi[0]
    pinned = Pins(domains).with_bounds(0, sampling=share, loss=factor).apply(weights)
    assert pinned.sampling[0] == pytest.approx(share)
    assert pinned.loss[0] == pytest.approx(factor, abs=1e-9)
    for new, old in ((pinned.sampling, weights.sampling), (pinned.loss, weights.loss)):
        np.testing.assert_allclose(new[1:] / new[1], old[1:] / old[1], rtol=1e-9)


def test_a_pin_acts_in_mid_run_and_comes_off_again() -> None:
    static = policies.Static()
    controller = Controller(runs.mixture(), policy=static, update_every=2, lag=1)
    run = runs.Run(controller, runs.model(), steps=30).train(8)
    before = controller.weights.sampling
    controller.pin("c", sampling=(0.4, 1.0), loss=0.5)
    assert controller.weights.sampling[2] == pytest.approx(0.4)
    run.train(16)
    assert controller.weights.sampling[2] == pytest.approx(0.4)
    assert controller.weights.loss[2] == pytest.approx(0.5)
    drawn = controller.mixture.domain_of(np.concatenate(run.rows[-4:]))
    assert (drawn == 2).mean() == pytest.approx(0.4, abs=0.05)
    controller.pin("c")
    np.testing.assert_allclose(controller.weights.sampling, before)
    np.testing.assert_allclose(controller.weights.loss, 1.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pinned_run_resumes_to_the_bit(workers: int) -> None:
    def make(num_workers: int) -> runs.Run:
        net = runs.model()
        controller = Controller(
            runs.mixture(), policy="variance_aware", update_every=3, lag=4, seed=4
        )
        controller.watch(net)
        return runs.Run(controller, net, steps=30, num_workers=num_workers)

    # With lag 4, two workers have drawn as far as they may when a pin comes in.
    whole, first, second = make(0), make(workers), make(workers)
    for run in (whole, first):
        run.train(10)
        run.controller.pin("a", sampling=(0.0, 0.2))
    first.train(11)
    second.load_state_dict(first.state_dict())
    for run in (whole, second):
        run.train(20)
        run.controller.pin("a")
        run.train()
    assert first.rows + second.rows == whole.rows
    assert first.weights + second.weights == whole.weights
    assert torch.equal(runs.parameters(second.net), runs.parameters(whole.net))
    assert max(weights[0] for weights in whole.weights[10:19]) <= 0.2 + 1e-12
    assert whole.weights[-1][0] > 0.2


def test_bad_pins_and_evaluations_are_named_and_change_nothing() -> None:
    controller = Controller(runs.mixture())
    before = controller.weights
    for bounds, message in (
        ({"sampling": 1.5}, "sampling must be finite and in"),
        ({"sampling": (0.5, 0.2)}, r"sampling must be \(low, high\) with low <= high"),
        ({"loss": -1.0}, "loss must be finite and in"),
        ({"sampling": 0.0}, "sampling must be > 0 where importance"),
    ):
        with pytest.raises(ValueError, match=message):
            controller.pin("a", **bounds)
    assert controller.weights is before
    with pytest.raises(ValueError, match="domain must be one of a, b, c; got 'z'"):
        controller.pin("z", sampling=0.5)
    controller.pin("a", sampling=0.7)
    with pytest.raises(ValueError, match="must"):
        controller.pin("b", sampling=0.7)
    with pytest.raises(ValueError, match="domain must be one of a, b, c; got 'z'"):
        controller.record_evaluation({"z": 1.0})
    with pytest.raises(ValueError, match=r"losses\['a'\] must be finite"):
        controller.record_evaluation({"a": float("nan")})
