"""Alarms and the operator's hand on the weights.

Also tests ``_warn_once.py`` and ``policies/_bounds.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmix import Controller, Domains, DomainStats, Mixture, Weights, policies
from adaptmix._warn_once import WarnOnce
from adaptmix.errors import (
    CollapseWarning,
    LossWeightWarning,
    RegressionWarning,
    RepetitionWarning,
)
from adaptmix.monitoring._alarms import Guards
from adaptmix.policies._bounds import Pins
from tests import runs


def guards(sizes: Sequence[float] = (100, 100), importance: Sequence[float] = (0.5, 0.5)) -> Guards:
    names = "abcdefgh"[: len(sizes)]
    return Guards(Domains(tuple(names), sizes, importance), WarnOnce())


UNKNOWN = DomainStats(seen=[0, 0])


def check(watching: Guards, weights: Weights, stats: DomainStats = UNKNOWN) -> None:
    watching.check_weights(weights, stats, estimated=True)


@pytest.mark.filterwarnings("ignore::adaptmix.errors.LossWeightWarning")
@pytest.mark.parametrize(
    ("sampling", "loss", "what", "bound"),
    [
        ([0.985, 0.015], [1.0, 1.0], "Sampling", "sampling"),
        ([0.5, 0.5], [1.99, 0.01], "The objective", "loss"),
    ],
)
def test_a_collapse_is_a_named_warning(
    sampling: list[float], loss: list[float], what: str, bound: str
) -> None:
    watching = guards()
    with pytest.warns(CollapseWarning, match=f"{what} has collapsed onto 'a'.*{bound}=.low, high"):
        check(watching, Weights(sampling, loss, [0.5, 0.5]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(watching, Weights(sampling, loss, [0.5, 0.5]))  # once is enough


def test_weights_that_are_only_proposed_do_nothing_to_a_run() -> None:
    least = {"b": 0.01, "c": 0.01}
    far = policies.Static(sampling={"a": 0.98, **least}, loss={"a": 1.0, **least})
    controller = Controller(runs.mixture(), mode="observe", policy=far, update_every=2, lag=1)
    runs.Run(controller, runs.model(), steps=6).train()
    for loss in (1.0, 2.0):
        controller.record_evaluation({"a": 1.0, "b": loss})
    with pytest.warns(RegressionWarning, match="Neither its share nor its loss weight has fallen"):
        controller.record_evaluation({"a": 1.0, "b": 2.0})


def test_what_the_user_asked_for_is_no_collapse() -> None:
    check(guards(importance=(0.999, 0.001)), Weights.proportional([0.999, 0.001]))
    check(guards(), Weights([0.8, 0.2], [1.0, 1.0], [0.5, 0.5]))
    check(guards((100,), (1.0,)), Weights.proportional([1.0]), DomainStats(seen=[0]))


def test_loss_weights_out_of_their_range_are_a_named_warning() -> None:
    extreme = Weights([0.5, 0.5], [1.9, 0.1], [0.5, 0.5])
    with pytest.warns(LossWeightWarning, match=r"0\.1 for 'b' to 1\.9 for 'a'.*another objective"):
        check(guards(), extreme)
    with pytest.warns(LossWeightWarning, match=r"4\.5 for 'a'"):
        check(guards(importance=(0.1, 0.9)), Weights([0.5, 0.5], [4.5, 0.55 / 0.9], [0.1, 0.9]))


def test_moderate_loss_weights_and_those_a_user_chose_are_not_warned_of() -> None:
    check(guards(), Weights([0.5, 0.5], [1.7, 0.3], [0.5, 0.5]))
    guards().check_weights(Weights([0.5, 0.5], [1.9, 0.1], [0.5, 0.5]), UNKNOWN, estimated=False)
    # Noise that no loss weight answers to.
    check(guards(), Weights.proportional([0.5, 0.5]), DomainStats(noise=[1.0, 1e4]))


@pytest.mark.filterwarnings("ignore::adaptmix.errors.CollapseWarning")
def test_noise_of_another_unit_is_named() -> None:
    """Targets of 'b' times 100: its noise is 10 000 times that of 'a'."""
    weights = Weights([0.5, 0.5], [1.9998, 0.0002], [0.5, 0.5])
    with pytest.warns(LossWeightWarning, match=r"noise of 'b' is 1e\+04 times that of 'a'.*in one"):
        check(guards(), weights, DomainStats(noise=[1.0, 1e4]))


def test_a_domain_drawn_many_times_over_is_a_named_warning() -> None:
    watching = guards((10, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watching.check_repetition(np.array([39.0, 1000.0]))
    said = r"'a' has been drawn 194\.1 times over \(1941 draws of its 10 rows"
    with pytest.warns(RepetitionWarning, match=said):
        watching.check_repetition(np.array([1941.0, 1000.0]))


def test_epochs_over_all_rows_are_no_repetition() -> None:
    guards((10, 10_000)).check_repetition(np.array([100.0, 100_000.0]))
    guards((10, np.inf)).check_repetition(np.array([10.0, 100_000.0]))


def test_a_small_domain_whose_share_rises_is_warned_of_in_a_run() -> None:
    """Ten loud rows beside three hundred: said within the run, not after it."""
    parts = {
        "few": runs.dataset(10, seed=1, scale=6.0),
        "many": runs.dataset(300, seed=2, scale=1.0),
    }
    mix = Mixture(parts, importance={"few": 1.0, "many": 1.0})
    controller = Controller(mix, update_every=5, lag=1)
    net = runs.model()
    controller.watch(net)
    with pytest.warns(RepetitionWarning, match=r"'few' has been drawn .* of its 10 rows"):
        runs.Run(controller, net, steps=30).train()


def test_a_domain_that_gets_worse_twice_is_a_named_warning() -> None:
    watching = guards()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a in (2.0, 1.0, 1.04, 1.2, 1.0, 1.2):  # an accident between good ones
            watching.check_losses({"a": a, "b": 3.0})
    resumed = guards()
    resumed.load_state_dict(watching.state_dict())
    with pytest.warns(RegressionWarning, match="'a' has risen to 1.1, from 1 at best"):
        resumed.check_losses({"a": 1.1})


def test_a_domain_of_importance_0_may_get_worse() -> None:
    watching = guards(importance=[1.0, 0.0])
    for b in (1.0, 2.0, 2.0, 2.0):
        watching.check_losses({"a": 1.0, "b": b})


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")
@pytest.mark.parametrize(
    ("sampling", "loss", "seen", "advice"),
    [
        ([0.5, 0.5], [1.0, 1.0], [900.0, 0.0], r"drawn 9\.0 times over: .*sampling=\(0, 0\.5\)"),
        ([0.8, 0.2], [1.0, 1.0], [900.0, 0.0], r"drawn 9\.0 times over and its share has risen"),
        ([0.5, 0.5], [0.5, 1.5], [9.0, 9.0], r"loss weight has fallen to 0\.5\..*loss=\(low"),
        ([0.2, 0.8], [1.0, 1.0], [9.0, 9.0], r"share has fallen to 0\.2 from 0\.5.*sampling="),
        ([0.5, 0.5], [1.0, 1.0], [9.0, 9.0], r"Neither its share nor .*learning rate"),
    ],
)
def test_advice_against_regression_fits_the_cause(
    sampling: list[float], loss: list[float], seen: list[float], advice: str
) -> None:
    watching = guards()
    check(watching, Weights(sampling, loss, [0.5, 0.5]))
    watching.check_repetition(np.array(seen))
    watching.check_losses({"a": 1.0})
    watching.check_losses({"a": 1.2})
    with pytest.warns(RegressionWarning, match=f"'a' has risen to 1.2, from 1 at best. .*{advice}"):
        watching.check_losses({"a": 1.2})


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
        ({"sampling": 0.0}, r"sampling must be > 0 for 'a', which counts in the objective; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            controller.pin("a", **bounds)
    assert controller.weights is before
    with pytest.raises(ValueError, match="domain must be one of a, b, c; got 'z'"):
        controller.pin("z", sampling=0.5)
    controller.pin("a", sampling=0.7)
    added = r"add up to 1\.4: sampling >= 0\.7 for 'a', sampling >= 0\.7 for 'b'\. Lower one"
    with pytest.raises(ValueError, match=f"^sampling must .*lowest values .*{added}"):
        controller.pin("b", sampling=0.7)
    controller.pin("a", loss=(0.0, 0.1))
    controller.pin("b", loss=(0.0, 0.1))
    with pytest.raises(
        ValueError, match=r"^importance · loss must .*highest .*loss <= 0\.1 for 'c'"
    ):
        controller.pin("c", loss=(0.0, 0.1))
    with pytest.raises(ValueError, match="domain must be one of a, b, c; got 'z'"):
        controller.record_evaluation({"z": 1.0})
    with pytest.raises(ValueError, match=r"losses\['a'\] must be finite"):
        controller.record_evaluation({"a": float("nan")})
