"""The controller end to end in a plain loop: adapting, observing, stopping and refusing.

Also tests ``_run.py`` and ``_adaptation.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adaptmix import Controller, DomainStats, Mixture, Weights, policies
from adaptmix.state._checkpoint import load, save
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")


def test_adapts_both_weights() -> None:
    net = runs.model()
    controller = Controller(
        runs.mixture(),
        policy=policies.chain(policies.Joint(bias="ignored")),
        update_every=5,
        measure_every=1,
        lag=2,
        holdout=None,
    )
    with controller.watch(net) as handle:
        assert handle.coverage is not None
        assert handle.coverage.share == 1.0
        run = runs.Run(controller, net).train()
    weights = controller.weights
    assert weights.sampling[2] > weights.importance[2]  # the loudest gradients by far
    assert np.abs(weights.loss - 1.0).max() > 0.01
    drawn = np.bincount(controller.mixture.domain_of(np.concatenate(run.rows[-10:])), minlength=3)
    assert drawn / drawn.sum() == pytest.approx(weights.sampling, abs=0.1)
    stats = controller.statistics
    assert stats.seen.sum() == 35 * 12
    assert stats.age.max() == 40 - 35
    assert controller.predicted_gain > 1.03
    assert "grad std" in controller.report()


def test_an_observed_run_trains_the_objective_on_rows_drawn_by_importance() -> None:
    mix, net, plain = runs.mixture(), runs.model(), runs.model()
    controller = Controller(mix, mode="observe", update_every=5, measure_every=1, seed=3)
    controller.watch(net)
    state = torch.random.get_rng_state()
    run = runs.Run(controller, net).train()
    assert torch.equal(torch.random.get_rng_state(), state)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.02, momentum=0.9)
    for (inputs, targets, _), rows in zip(runs.plain_loader(mix, run.rows), run.rows, strict=True):
        each = F.cross_entropy(plain(inputs), targets, reduction="none")
        domains = mix.domain_of(np.array(rows))
        # Σ π (mean loss of the domain's rows); every batch of twelve has some of each.
        objective = sum(mix.importance[i] * each[domains == i].mean() for i in range(3))
        assert isinstance(objective, torch.Tensor)
        objective.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(runs.parameters(net), runs.parameters(plain), rtol=1e-9, atol=1e-9)
    assert controller.weights.sampling.tolist() == mix.importance.tolist()
    assert controller.weights.loss.tolist() == [1.0] * 3
    assert np.abs(controller.proposed.sampling - mix.importance).max() > 0.02
    assert controller.predicted_gain > 1.03
    assert controller.report().splitlines()[-1].startswith("Observed only")


def test_observed_and_adapting_runs_start_from_one_objective_where_the_unit_is_tokens() -> None:
    """Rows of 32 and 2 tokens: 0.1 trained the observed run on .941 of the long ones."""
    length = {"long": 32, "short": 2}
    parts = {
        name: torch.utils.data.TensorDataset(torch.full((40,), n)) for name, n in length.items()
    }
    counted = {}
    for mode in ("observe", "adapt"):
        controller = Controller(
            Mixture(parts, importance=dict.fromkeys(parts, 1.0)),
            policy="static",
            mode=mode,
            unit="token",
            tokens_per_row={name: float(n) for name, n in length.items()},
        )
        parts_of_objective = np.zeros(2)
        for (tokens,), draw in controller.loader(17, steps=8).with_draws():
            losses = torch.ones(17, 32, dtype=torch.float64, requires_grad=True)
            mask = torch.arange(32) < tokens[:, None]
            controller.loss(losses, draw=draw, mask=mask).backward()
            assert losses.grad is not None
            for domain in range(2):
                parts_of_objective[domain] += float(losses.grad[draw.domains == domain].sum()) / 8
            controller.step()
        counted[mode] = parts_of_objective
    np.testing.assert_allclose(counted["observe"], counted["adapt"], rtol=1e-12)
    np.testing.assert_allclose(counted["observe"], [0.5, 0.5], rtol=1e-9)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_rows_weights_and_parameters_do_not_depend_on_workers(accumulation: int) -> None:
    results = []
    for workers in (0, 2):
        net = runs.model()
        controller = Controller(
            runs.mixture(), policy="joint", update_every=3, measure_every=1, lag=4
        )
        controller.watch(net)
        run = runs.Run(
            controller, net, steps=20, accumulation=accumulation, num_workers=workers
        ).train()
        results.append((run.rows, run.weights, runs.parameters(net)))
    assert results[0][0] == results[1][0]
    assert results[0][1] == results[1][1]
    assert len({tuple(weights) for weights in results[0][1]}) > 3
    assert torch.equal(results[0][2], results[1][2])


# A stop right after an update, between updates, in an observed step, and before anything is known.
@pytest.mark.parametrize("stop", [1, 4, 5, 6, 17, 39])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")
def test_stop_and_resume_is_bit_identical(stop: int, workers: int, tmp_path: Path) -> None:
    policy = ("variance_aware", "joint", "transfer")[stop % 3]
    auxiliary = {"a": 1.0, "b": 3.0, "c": 0.0} if policy == "transfer" else None

    def make(net: nn.Module) -> runs.Run:
        controller = Controller(
            runs.mixture(auxiliary),
            policy=policy,
            update_every=5,
            measure_every=3,
            lag=4,
            seed=2,
            holdout=0.2,
        )
        controller.watch(net)
        return runs.Run(controller, net, accumulation=2, batch_size=6, num_workers=workers)

    whole = make(runs.model()).train()
    first = make(runs.model()).train(stop)
    save(first.state_dict(), tmp_path / "state.pt")
    second = make(runs.model(seed=9))
    second.load_state_dict(load(tmp_path / "state.pt"))
    second.train()
    assert first.rows + second.rows == whole.rows
    np.testing.assert_array_equal(first.weights + second.weights, whole.weights)
    assert torch.equal(runs.parameters(second.net), runs.parameters(whole.net))
    for key, value in second.controller.statistics.__dict__.items():
        np.testing.assert_array_equal(value, getattr(whole.controller.statistics, key))


def test_equal_domains_are_left_alone() -> None:
    part = runs.dataset(200, seed=1, scale=1.0)
    mix = Mixture({"x": part, "y": part, "z": part})
    controller = Controller(mix, policy="joint", half_life=500.0, update_every=5)
    net = runs.model()
    controller.watch(net)
    run = runs.Run(controller, net, batch_size=24, steps=25).train()
    sampling = np.array(run.weights[-1][:3])
    # Each domain's standard deviation comes from about 40 samples here.
    assert sampling == pytest.approx(np.full(3, 1 / 3), abs=0.06)
    assert run.weights[-1][3:] == pytest.approx(np.ones(3), abs=0.15)


@pytest.mark.parametrize("with_noise", [True, False])
def test_what_is_measured_never_chooses_what_is_optimised(with_noise: bool) -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), update_every=5, measure_every=1)
    controller.watch(net)
    runs.Run(controller, net, steps=25, with_noise=with_noise).train()
    assert controller.weights.loss.tolist() == [1.0] * 3
    named = Controller(runs.mixture(), policy="variance_aware", update_every=5, measure_every=1)
    assert controller._identity()["policy"] == named._identity()["policy"]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("fgls", "one unit"),
        (policies.Joint(bias="ignored"), "one unit"),
        (
            policies.Joint(bias="ignored", use_sizes=True),
            "use_sizes=True turns domains with few rows down",
        ),
        (policies.chain(policies.FGLS(), policies.VarianceAware()), "one unit"),
        ("variance_aware", None),
        ("static", None),
    ],
)
def test_what_a_policy_assumes_is_said_where_it_is_chosen(
    policy: policies.Policy | str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="adaptmix"):
        Controller(runs.mixture(), policy=policy)
    assert len(caplog.messages) == (said is not None)
    assert said is None or said in caplog.messages[0]


def test_a_users_own_policy_works_as_the_built_in_ones() -> None:
    class Loudest:
        requires = frozenset({"loss_mean"})

        def init(self, domains: Any, run: Any) -> dict[str, Any]:
            return {"pi": domains.importance, "calls": 0}

        def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, Any]:
            shares = stats.loss_mean / stats.loss_mean.sum()
            return Weights(shares, np.ones(3), state["pi"]), {**state, "calls": state["calls"] + 1}

    controller = Controller(runs.mixture(), policy=Loudest(), update_every=2)
    runs.Run(controller, runs.model(), steps=12).train()
    stats = controller.statistics
    assert controller.weights.sampling == pytest.approx(stats.loss_mean / stats.loss_mean.sum())
    state = controller.state_dict()
    assert state["steering"]["state"]["calls"] == 5


def test_pins_set_before_training_hold_from_the_first_batch_on() -> None:
    controller = Controller(runs.mixture(), policy="static", lag=6)
    controller.pin("c", sampling=0.5, loss=2.0)
    drawn = []
    for batch, draw in controller.loader(12, steps=3).with_draws():
        losses = torch.ones(12, dtype=torch.float64, requires_grad=True)
        controller.loss(losses, draw=draw).backward()
        controller.step()
        drawn.append((draw.domains == 2).sum().item())
        assert losses.grad is not None
        part = float(losses.grad[draw.domains == 2].sum())
        assert part == pytest.approx(2.0 * controller.mixture.importance[2])
        assert len(batch[2]) == 12
    assert drawn == [6, 6, 6]


def test_pairs_are_samples_when_the_model_runs_both_rows() -> None:
    """Chosen and rejected rows in one forward pass, as preference trainers run them."""
    controller, net = Controller(runs.mixture()), runs.model()
    controller.watch(net)
    for (inputs, _, _), draw in controller.loader(8, steps=24).with_draws():
        scores = net(torch.cat([inputs, -2.0 * inputs]))[:, 0]
        losses = -F.logsigmoid(scores[:8] - scores[8:])
        samples = torch.arange(8).repeat(2)
        controller.loss(losses, draw=draw, samples=samples).backward()
        controller.step()
    assert np.isfinite(controller.statistics.grad_var[:2]).all()
