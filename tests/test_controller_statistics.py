"""What a controller knows of the domains, and what it does where something is missing.

Also tests ``statistics/_measurements.py``, ``statistics/_supplied.py``, ``statistics/_gaps.py`` and
``data/_lengths.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptmix import Controller, Domains, DomainStats, Mixture, Weights, noise, policies
from adaptmix.errors import (
    CoverageWarning,
    MissingStatisticError,
    MissingStatisticWarning,
    NoiseWarning,
    NonFiniteWarning,
    TooFewRowsWarning,
)
from adaptmix.state._checkpoint import save
from tests import runs
from tests.runs import started

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")


@pytest.mark.filterwarnings("default::adaptmix.errors.NoiseWarning")
def test_noise_is_out_of_sample_only() -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), policy="fgls", update_every=2, holdout=None)
    with pytest.warns(NoiseWarning, match="'[abc]' repeats"):
        runs.Run(controller, net, steps=30).train()
    frozen = controller.statistics.noise
    controller.loader(12, steps=60)
    runs.Run(controller, net, steps=60).train()
    assert controller.statistics.noise.tolist() == frozen.tolist()
    held_out = torch.full((50,), 3.0)
    controller.record_noise(held_out, "b")
    runs.Run(controller, net, steps=70).train()
    after = controller.statistics.noise
    assert after[1] > frozen[1]
    assert after[[0, 2]].tolist() == frozen[[0, 2]].tolist()


def test_non_finite_losses_stay_out_of_the_statistics() -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), policy="joint", update_every=2, holdout=None)
    controller.watch(net)
    with pytest.warns(NonFiniteWarning, match="were left out of the statistics"):
        for (inputs, targets, _), draw in controller.loader(12, steps=12).with_draws():
            logits = net(inputs)
            losses = F.cross_entropy(logits, targets, reduction="none")
            if draw.step in (3, 4):
                losses = torch.where(torch.arange(12) == 5, torch.nan, 1.0) * losses
            controller.loss(losses, draw=draw, noise=noise.softmax(logits, targets)).backward()
            net.zero_grad()
            controller.step()
    stats = controller.statistics
    for field in (stats.loss_mean, stats.loss_var, stats.grad_var, stats.noise):
        assert np.isfinite(field).all()
    assert np.isfinite(controller.weights.multipliers).all()


@pytest.mark.filterwarnings("ignore::adaptmix.errors.UnseenDomainWarning")
def test_single_rows_are_enough_for_the_default_policy() -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), update_every=1)
    controller.watch(net)
    runs.Run(controller, net, batch_size=1, steps=6).train()  # no TooFewRowsWarning
    assert np.isnan(controller.statistics.grad_var).all()
    assert np.isfinite(controller.statistics.grad_sq).any()


def test_a_policy_waits_for_what_nothing_tells_yet() -> None:
    class NeedsPairs(policies.Static):
        requires = frozenset({"grad_var"})

    net = runs.model()
    controller = Controller(runs.mixture(), policy=NeedsPairs(), update_every=1)
    controller.watch(net)
    with pytest.warns(TooFewRowsWarning, match="no row of an observed step told what it needs"):
        runs.Run(controller, net, batch_size=1, steps=6).train()
    assert controller.weights.sampling.tolist() == controller.mixture.importance.tolist()


@pytest.mark.parametrize(
    ("policy", "watched", "message"),
    [
        (
            "variance_aware",
            False,
            r"^policy='variance_aware' needs .*'grad_sq'.*controller.watch\(model\)",
        ),
        ("fgls", True, r"^policy='fgls' needs the statistic 'noise'.*noise="),
        (policies.VarianceAware(lower=0.1), False, r"^policy=VarianceAware\(lower=0.1, .*\) needs"),
        (
            policies.chain(policies.Shrink(), policies.FGLS()),
            True,
            r"^policy=Chain\(before=\(Shrink\(.*\) needs",
        ),
    ],
)
def test_a_missing_statistic_is_an_error(
    policy: policies.Policy | str, watched: bool, message: str
) -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), policy=policy, update_every=2)
    if watched:
        controller.watch(net)
    with pytest.raises(MissingStatisticError, match=message):
        runs.Run(controller, net, with_noise=False).train()


def test_a_missing_statistic_is_told_in_the_first_loss() -> None:
    def first(**options: Any) -> Controller:
        controller, draw = started(Controller(runs.mixture(), **options))
        controller.loss(torch.ones(8, requires_grad=True), draw=draw)
        return controller

    with pytest.raises(MissingStatisticError, match=r"^policy='variance_aware' needs .*watch"):
        first()
    with pytest.warns(MissingStatisticWarning, match=r"^Nothing is proposed: policy='variance_aw"):
        first(mode="observe")
    controller, draw = started(Controller(runs.mixture(), runs.model(), policy="fgls"))
    controller.record_noise(torch.ones(3), "a")  # of held-out rows
    controller.loss(torch.ones(8, requires_grad=True), draw=draw)
    assert first(policy="static").completed == 0


@pytest.mark.filterwarnings("ignore::adaptmix.errors.TooFewRowsWarning")
@pytest.mark.filterwarnings("ignore::adaptmix.errors.UnseenDomainWarning")
def test_100_000_domains_need_no_products_between_each_two(tmp_path: Path) -> None:
    """0.1 asked for 74.5 GiB in the constructor."""
    labels = np.arange(200_000) % 100_000
    rows = TensorDataset(torch.randn(200_000, 2), torch.randn(200_000))
    controller, net = Controller(Mixture.from_labels(rows, labels.tolist())), nn.Linear(2, 1)
    controller.watch(net)
    for (inputs, targets), draw in controller.loader(8, steps=12).with_draws():
        losses = (net(inputs)[:, 0] - targets).square()
        controller.loss(losses, draw=draw).backward()
        controller.step()
    assert "grad_sq" in controller.statistics.supplied()
    assert controller.statistics.grad_gram is None
    save(controller.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 100e6


def test_a_policy_that_reads_inner_products_gets_them() -> None:
    class Aligned:
        requires = frozenset({"grad_gram"})

        def init(self, domains: Domains, run: Any) -> Any:
            return {"importance": domains.importance}

        def update(self, stats: DomainStats, state: Any) -> tuple[Weights, Any]:
            assert stats.grad_gram is not None
            seen.append(stats.grad_gram)
            return Weights.proportional(state["importance"]), state

    seen: list[Any] = []
    controller, net = Controller(runs.mixture(), policy=Aligned()), runs.model()
    controller.watch(net)
    runs.Run(controller, net, steps=24, with_noise=False).train()
    assert seen[-1].shape == (3, 3)


@pytest.mark.filterwarnings("ignore::adaptmix.errors.TooFewRowsWarning")
def test_observing_goes_on_where_no_gradient_is_seen() -> None:
    """A penalty that uses every layer outside of the model's forward hides what rows do."""

    def train(mode: str) -> Controller:
        net = runs.model()
        controller = Controller(runs.mixture(), update_every=2, lag=2, mode=mode)
        controller.watch(net)
        for (inputs, targets, _), draw in controller.loader(12, steps=4).with_draws():
            losses = torch.nn.functional.cross_entropy(net(inputs), targets, reduction="none")
            controller.loss(losses.detach().requires_grad_(), draw=draw).backward()
            controller.step()
        return controller

    with pytest.warns(CoverageWarning, match="Gradient variances are unknown"):
        observed = train("observe")
    assert np.isnan(observed.statistics.grad_var).all()
    with pytest.raises(ValueError, match="its probe saw no gradient"):
        train("adapt")
