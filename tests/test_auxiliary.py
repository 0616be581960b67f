"""Domains of importance 0: who refuses them, and what a run does with them."""

from __future__ import annotations

import numpy as np
import pytest

from adaptmix import Controller, Domains, DomainStats, Weights
from adaptmix.policies import (
    NAMED,
    Run,
    Smooth,
    Transfer,
    TrustRegion,
    VarianceAware,
    chain,
)
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


def test_variance_aware_in_a_chain_leaves_the_weights_of_auxiliary_domains() -> None:
    """What "b", there to help, has of the objective is drawn by its own variance."""
    domains = Domains(("a", "b"), [50, 1000], [1.0, 0.0])
    stats = DomainStats(grad_var=[1.0, 9.0], grad_sq=[1.0, 9.0])
    policy = VarianceAware(lower=0.0)
    for objective, shares in (([0.4, 0.6], [0.4 / 2.2, 1.8 / 2.2]), ([1.0, 0.0], [1.0, 0.0])):
        lent = Weights([0.5, 0.5], None, domains.importance, objective=objective)
        weights, _ = policy.refine(lent, stats, policy.init(domains, Run(10**6)))
        np.testing.assert_array_equal(weights.objective, objective)
        np.testing.assert_allclose(weights.sampling, shares)


def test_a_report_tells_the_objective_that_is_trained_with_pins_in_it() -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), net, policy="transfer", update_every=4)
    controller.pin("c", loss=1.0)
    runs.Run(controller, net, steps=20).train()
    pinned = controller.mixture.importance[2]
    assert controller.weights.objective[2] == pytest.approx(pinned)
    assert controller.scalars()["objective/c"] == pytest.approx(pinned)
    columns, *_, last = (line.split() for line in controller.report().splitlines()[:4])
    assert columns[5:7] == ["weight", "objective"]
    assert last[5] == f"{pinned:.3f}"
