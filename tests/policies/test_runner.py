"""The runner: what a policy starts with, and what its state may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix import Controller, Domains, DomainStats, Weights
from adaptmix.data import Plan
from adaptmix.policies import Policy, Run, Start, Static, VarianceAware, chain
from adaptmix.policies._runner import Steering
from tests import runs

SHARES = {"a": 0.2, "b": 0.3, "c": 0.5}
LOSS = {"a": 1.0, "b": 2.0, "c": 0.5}
EXPECTED = Static(SHARES, LOSS)


class Ramp:
    """A user's own policy, which starts with other shares than importance."""

    requires = frozenset({"loss_mean"})

    def init(self, domains: Domains, run: Run) -> Start:
        shares = np.array([SHARES[name] for name in domains.names])
        weights = Weights(shares, np.ones(len(domains)), domains.importance)
        return Start(weights, {"rows": run.batch_size, "counts": run.counts})

    def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        return Weights.proportional(np.ones(3) / 3), state


def plan_of(controller: Controller) -> Plan:
    """What draws the rows of a controller's mixture."""
    assert isinstance(controller._plan, Plan)
    return controller._plan


@pytest.mark.parametrize(
    "policy", [EXPECTED, chain(EXPECTED), Ramp()], ids=["static", "chain", "own"]
)
def test_weights_to_start_with_hold_from_the_first_batch_on(policy: Policy) -> None:
    controller = Controller(runs.mixture(), policy=policy)
    controller.sampler(20, steps=4)
    shares = [SHARES[name] for name in controller.mixture.domains]
    np.testing.assert_allclose(controller.weights.sampling, shares)
    np.testing.assert_allclose(plan_of(controller).schedule.shares_at(0), shares)
    drawn = next(iter(plan_of(controller).steps(0, 1, size=20)))
    assert np.bincount(drawn.domains, minlength=3).tolist() == [4, 6, 10]


def test_the_gradient_of_the_first_step_has_the_weights_to_start_with() -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), policy=EXPECTED, update_every=50)
    runs.Run(controller, net, steps=3).train()
    info = controller.mixture.info
    expected = EXPECTED.init(info, Run()).weights
    np.testing.assert_allclose(controller.weights.loss, expected.loss)
    np.testing.assert_allclose(controller.weights.multipliers, expected.multipliers)


def test_an_observed_run_starts_with_importance_all_the_same() -> None:
    controller = Controller(runs.mixture(), policy=EXPECTED, mode="observe")
    controller.sampler(20, steps=4)
    importance = controller.mixture.importance
    np.testing.assert_array_equal(controller.weights.sampling, importance)
    np.testing.assert_array_equal(plan_of(controller).schedule.shares_at(0), importance)
    assert controller.proposed.sampling.tolist() != importance.tolist()


def test_pins_set_before_training_hold_from_the_first_batch_on() -> None:
    controller = Controller(runs.mixture())
    controller.pin("b", sampling=0.6, loss=0.5)
    controller.sampler(20, steps=4)
    b = controller.mixture.domains.index("b")
    for shares in (controller.weights.sampling, plan_of(controller).schedule.shares_at(0)):
        assert shares[b] == pytest.approx(0.6)
    assert controller.weights.loss[b] == pytest.approx(0.5)
    controller.pin("b")
    np.testing.assert_allclose(
        plan_of(controller).schedule.shares_at(0), controller.mixture.importance
    )


def test_a_pin_in_mid_run_waits_for_the_rows_that_were_drawn() -> None:
    controller = Controller(runs.mixture(), lag=2)
    before = controller.mixture.importance
    for _ in plan_of(controller).steps(0, 1, size=20):
        controller.pin("b", sampling=0.6)
    np.testing.assert_array_equal(plan_of(controller).schedule.shares_at(0), before)


def test_a_state_that_no_checkpoint_can_hold_is_refused_before_training() -> None:
    class Drawing(Ramp):
        def init(self, domains: Domains, run: Run) -> Any:
            return {"generator": np.random.default_rng(0)}

    controller = Controller(runs.mixture(), policy=Drawing())
    message = r"^policy=.*Drawing must keep a state that checkpoints can hold.*got Generator"
    with pytest.raises(TypeError, match=message):
        controller.sampler(20, steps=4)


def test_weights_to_start_with_are_of_the_run() -> None:
    class Even(Ramp):
        def init(self, domains: Domains, run: Run) -> Start:
            return Start(Weights.proportional(np.full(3, 1 / 3)), None)

    with pytest.raises(ValueError, match="must return weights with the importance of the run"):
        Controller(runs.mixture(), policy=Even()).sampler(20, steps=4)


def test_the_loader_that_is_used_tells_a_policy_its_run() -> None:
    steering = Steering(runs.mixture().info, Ramp(), sampler="multinomial")
    assert steering.prepare(batch_size=8, horizon=10)
    assert steering.prepare(batch_size=16, horizon=10)  # the first one was made and not used
    assert steering.state_dict()["state"] == {"rows": 16, "counts": "multinomial"}
    again = Steering(runs.mixture().info, Ramp(), sampler="multinomial")
    again.load_state_dict(steering.state_dict())
    assert not again.prepare(batch_size=16, horizon=20)


def test_a_class_and_its_name_are_one_policy_and_a_resume_takes_either() -> None:
    named, made = (
        Steering(runs.mixture().info, policy, sampler="stratified")
        for policy in ("variance_aware", VarianceAware())
    )
    assert named.description == made.description
    assert "0x" not in str(made.description)
    other = Steering(runs.mixture().info, VarianceAware(upper=0.5), sampler="stratified")
    assert other.description != made.description
