"""Domains of importance 0: who refuses them, and what a run does with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptmix import Controller, Weights
from adaptmix.policies import NAMED, Run, Smooth, Transfer, TrustRegion, chain
from tests import runs

AUXILIARY = {"a": 1.0, "b": 3.0, "c": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")


@pytest.mark.parametrize("name", [name for name in NAMED if name != "transfer"])
def test_policies_that_weight_by_importance_refuse_and_name_transfer(name: str) -> None:
    with pytest.raises(ValueError, match=r"importance must be > 0 .*got 0 for 'c'.*\"transfer\""):
        Controller(runs.mixture(AUXILIARY), policy=name)


def test_an_observed_run_trains_on_the_domains_that_count() -> None:
    net = runs.model()
    controller = Controller(
        runs.mixture(AUXILIARY), net, policy="transfer", mode="observe", update_every=2
    )
    run = runs.Run(controller, net, steps=12).train()
    rows = {row for step in run.rows for row in step}
    assert max(rows) < runs.SIZES[0] + runs.SIZES[1]
    assert controller.weights.sampling.tolist() == [0.25, 0.75, 0.0]
    assert "Observed only" in controller.report()


def test_a_run_that_stops_goes_on_as_it_would_have() -> None:
    def start() -> tuple[Controller, torch.nn.Module]:
        net = runs.model()
        mixture = runs.mixture(AUXILIARY)
        return Controller(mixture, net, policy="transfer", update_every=2, half_life=20), net

    controller, net = start()
    whole = runs.Run(controller, net, steps=30).train()
    controller, net = start()
    first = runs.Run(controller, net, steps=30).train(stop=13)
    saved = controller.state_dict()
    again, copy = start()
    copy.load_state_dict(net.state_dict())
    again.load_state_dict(saved)
    rest = runs.Run(again, copy, steps=30)
    rest.optimizer.load_state_dict(first.optimizer.state_dict())
    rest.train()
    assert first.rows + rest.rows == whole.rows
    assert again.weights.objective.tolist() == whole.controller.weights.objective.tolist()
    np.testing.assert_array_equal(again.weights.loss, whole.controller.weights.loss)


def test_a_loss_weight_of_an_auxiliary_domain_is_not_to_be_pinned() -> None:
    controller = Controller(runs.mixture(AUXILIARY), policy="transfer")
    with pytest.raises(ValueError, match="loss must not be bounded for 'c', whose importance is 0"):
        controller.pin("c", loss=0.5)
    controller.pin("c", sampling=0.5)
    controller.pin("a", loss=(0.5, 1.0))
    controller.loader(8, steps=4)
    assert controller.weights.sampling[2] == 0.5
    assert controller.weights.objective.sum() == pytest.approx(1.0)


def test_refinements_take_steps_between_objectives() -> None:
    domains = runs.mixture(AUXILIARY).info
    for refinement in (Smooth(0.5), TrustRegion(0.1)):
        policy = chain(Transfer(), refinement)
        start, state = policy.init(domains, Run())
        proposal = Weights([0.2, 0.2, 0.6], None, domains.importance, objective=[0.2, 0.2, 0.6])
        weights, _ = refinement.refine(proposal, None, state[1])  # type: ignore[arg-type]
        assert start.objective[2] < weights.objective[2] < 0.6
        assert weights.objective.sum() == pytest.approx(1.0)
