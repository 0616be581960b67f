"""The controller end to end in a plain loop: adapting, observing, stopping and refusing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptmix import Controller, Domains, DomainStats, Mixture, Weights, noise, policies
from adaptmix.errors import (
    CoverageWarning,
    LagError,
    MissingStatisticError,
    MissingStatisticWarning,
    NoiseWarning,
    NonFiniteWarning,
    StateError,
    TooFewRowsWarning,
)
from adaptmix.state._checkpoint import load, save
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")


def started(controller: Controller, **options: Any) -> tuple[Controller, Any]:
    loader = controller.loader(8, steps=4, **options)
    return controller, next(iter(loader.with_draws()))[1]


def test_adapts_both_weights() -> None:
    net = runs.model()
    controller = Controller(
        runs.mixture(),
        policy=policies.chain(policies.Joint()),
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
def test_stop_and_resume_is_bit_identical(stop: int, workers: int, tmp_path: Path) -> None:
    def make(net: nn.Module) -> runs.Run:
        controller = Controller(runs.mixture(), update_every=5, measure_every=3, lag=4, seed=2)
        controller.watch(net)
        return runs.Run(controller, net, accumulation=2, batch_size=6, num_workers=workers)

    whole = make(runs.model()).train()
    first = make(runs.model()).train(stop)
    save(first.state_dict(), tmp_path / "state.pt")
    second = make(runs.model(seed=9))
    second.load_state_dict(load(tmp_path / "state.pt"))
    second.train()
    assert first.rows + second.rows == whole.rows
    assert first.weights + second.weights == whole.weights
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


def test_a_policy_of_another_importance_is_an_error() -> None:
    class Even:
        requires = frozenset({"loss_mean"})

        def init(self, domains: Any, run: Any) -> dict[str, Any]:
            return {}

        def update(self, stats: DomainStats, state: dict[str, Any]) -> tuple[Weights, Any]:
            return Weights.proportional(np.full(3, 1 / 3)), state

    controller = Controller(runs.mixture(), policy=Even(), update_every=2)
    message = (
        r"^policy=.*Even must return weights with the importance of the run, \[0\.54.*got \[0\.3"
    )
    with pytest.raises(ValueError, match=message):
        runs.Run(controller, runs.model(), steps=12).train()
    assert controller.weights.importance.tolist() == controller.mixture.importance.tolist()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("fgls", "one unit"),
        ("joint", "one unit"),
        (policies.Joint(use_sizes=True), "use_sizes=True turns domains with few rows down"),
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
    held_out = torch.full((50,), 7.0)
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


def test_refuses_what_cannot_be_right() -> None:
    controller, draw = started(Controller(runs.mixture(), policy="static"))
    other, _ = started(Controller(runs.mixture(), policy="static"))
    losses = torch.ones(8, requires_grad=True)
    with pytest.raises(ValueError, match=r"step\(\) must follow 1 calls of loss"):
        controller.step()
    with pytest.raises(ValueError, match="another controller"):
        other.loss(losses, draw=draw)
    with pytest.raises(TypeError, match="draw must be"):
        controller.loss(losses, draw="draw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'got a scalar.*reduction="none"'):
        controller.loss(losses.mean(), draw=draw)
    with pytest.raises(ValueError, match="8 rows first; got shape"):
        controller.loss(torch.ones(7), draw=draw)
    with pytest.raises(ValueError, match="one term per row"):
        controller.loss(losses, draw=draw, noise=torch.ones(7))
    controller.loss(losses, draw=draw)
    with pytest.raises(ValueError, match="draw must be number 1"):
        controller.loss(losses, draw=draw)
    with pytest.raises(ValueError, match="must be called between optimizer steps"):
        controller.state_dict()


def test_refuses_a_backward_that_the_probe_does_not_see() -> None:
    controller = Controller(runs.mixture(), update_every=1)
    watched, trained = runs.model(), runs.model()
    controller.watch(watched)
    with pytest.raises(ValueError, match="probe saw no gradient"):
        runs.Run(controller, trained).train()


def test_refuses_loaders_that_run_ahead() -> None:
    controller = Controller(runs.mixture(), lag=1)
    with pytest.raises(LagError, match="lag must be at least 4"):
        controller.loader(8, num_workers=2)
    loader = controller.loader(8, steps=10)
    with pytest.raises(LagError, match="step 2 was drawn and step 0 was next"):
        list(loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "best"}, "policy must be one of variance_aware"),
        ({"policy": runs.Run}, "policy must be a name, or an object"),
        ({"update_every": 0}, "update_every must be an integer >= 1"),
        ({"measure_every": 2.5}, "measure_every must be an integer"),
        ({"lag": -1}, "lag must be an integer >= 0"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"unit": "row"}, "unit must be one of sample, token"),
        ({"mode": "off"}, "mode must be one of adapt, observe"),
        ({"half_life": 0.0}, "half_life must be finite and in"),
        ({"tokens_per_row": {"a": 1.5}}, 'tokens_per_row must be at most 1 with unit="sample"'),
        ({"unit": "token", "tokens_per_row": {"a": 1.0}}, "must name exactly the domains a, b, c"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Controller(runs.mixture(), **arguments)


def test_bad_loaders_and_mixtures_are_named() -> None:
    with pytest.raises(TypeError, match=r"mixture must be .*; got dict"):
        Controller({"a": [1]})  # type: ignore[arg-type]
    controller = Controller(runs.mixture())
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1; got 0"):
        controller.loader(0)
    with pytest.raises(TypeError, match="shuffle must not be given"):
        controller.loader(4, shuffle=True)
    with pytest.raises(ValueError, match="model must be watched once"):
        net = runs.model()
        controller.watch(net)
        controller.watch(net)


def test_a_state_fits_only_its_own_run() -> None:
    controller = Controller(runs.mixture(), policy="static")
    runs.Run(controller, runs.model(), steps=4, batch_size=8).train()
    state = controller.state_dict()
    with pytest.raises(StateError, match="seed must be what the saved run had: 0; got 1"):
        Controller(runs.mixture(), policy="static", seed=1).load_state_dict(state)
    with pytest.raises(StateError, match=r"^policy\.class must be what .*Static'; got"):
        Controller(runs.mixture(), policy="fgls", holdout=None).load_state_dict(state)
    with pytest.raises(StateError, match=r"^plan\.completed must be in the state"):
        Controller(runs.mixture(), policy="static").load_state_dict({**state, "plan": {}})
    resumed = Controller(runs.mixture(), policy="static")
    resumed.load_state_dict(state)
    with pytest.raises(StateError, match="must stay 8 in a run; got 4 × 1 × 1 = 4"):
        resumed.loader(4)


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


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (torch.arange(8.0), TypeError, "samples must be a tensor of integers; got torch.float32"),
        (torch.zeros(2, 8).long(), ValueError, r"samples must have shape \(R,\)"),
        (torch.arange(9), ValueError, r"in \[0, 8\); got 0 to 8"),
    ],
)
def test_samples_are_checked(samples: Tensor, error: type[Exception], message: str) -> None:
    controller = Controller(runs.mixture(), policy="static")
    _, draw = next(iter(controller.loader(8).with_draws()))
    with pytest.raises(error, match=message):
        controller.loss(torch.ones(8, requires_grad=True), draw=draw, samples=samples)


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
