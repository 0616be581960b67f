"""Transfer: what it weights, what it drops, and how it keeps all in sight.

Also tests ``policies/_gram.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptmix import Controller, Domains, DomainStats, Mixture, Weights
from adaptmix._checks import FloatArray
from adaptmix.policies import Run, Transfer

NAMES = ("target", "helper", "other")
DOMAINS = Domains(NAMES, [50, 1000, 1000], [1, 0, 0])
RUN = Run(batch_size=32, horizon=1000)
GRAM = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # other is orthogonal


def statistics(gram: Any = GRAM, **fields: Any) -> DomainStats:
    return DomainStats(**{"grad_var": np.ones(3), "grad_gram": gram} | fields)


def settled(
    stats: DomainStats, domains: Domains = DOMAINS, run: Run = RUN, updates: int = 30
) -> tuple[Weights, FloatArray]:
    """Weights after some updates with the same statistics, and how much each domain helps."""
    policy = Transfer()
    weights, state = policy.init(domains, run)
    for _ in range(updates):
        weights, state = policy.update(stats, state)
    return weights, policy.figures(state)["helps"]


def test_it_starts_from_equal_shares_and_the_stated_objective() -> None:
    weights, state = Transfer().init(DOMAINS, RUN)
    assert weights.sampling.tolist() == [1 / 3] * 3
    assert weights.objective[0] == pytest.approx(1.0, abs=3e-4)
    unknown = GRAM.copy()
    unknown[0] = unknown[:, 0] = np.nan
    same, state = Transfer().update(statistics(unknown), state)
    assert same.objective.tolist() == weights.objective.tolist()
    assert same.sampling.min() >= 0.3


def test_steps_of_one_row_are_refused_for_they_tell_no_inner_product() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 2 with Transfer"):
        Transfer().init(DOMAINS, Run(batch_size=1))


def test_a_domain_that_pulls_elsewhere_is_dropped_and_stays_in_sight() -> None:
    weights, helps = settled(statistics())
    assert weights.objective[1] > 0.8
    assert 0.0 < weights.objective[2] < 0.002
    assert weights.sampling[2] > 0.005
    assert helps[1] > 0.5
    assert helps[2] < 0.001


def test_a_noisy_copy_of_the_target_is_turned_down_and_not_off() -> None:
    noisy = statistics(np.ones((3, 3)), grad_var=[1.0, 1.0, 25.0])
    weights, _ = settled(noisy)
    assert 0.01 < weights.objective[2] < 0.1 < weights.objective[1]


def test_a_target_with_rows_enough_needs_no_help() -> None:
    far = statistics(np.diag([1.0, 1.0, 1.0]))
    shares = [
        settled(far, Domains(NAMES, [n, 1000, 1000], [1, 0, 0]))[0].objective[0]
        for n in (2, 20, 200, 20_000)
    ]
    assert shares == sorted(shares)
    assert shares[-1] > 0.99


def test_where_all_count_equally_and_agree_nothing_moves() -> None:
    even = Domains(NAMES, [1000] * 3, [1, 1, 1])
    weights, helps = settled(statistics(np.ones((3, 3))), even)
    np.testing.assert_allclose(weights.loss, 1.0, atol=1e-6)
    np.testing.assert_allclose(helps, 0.0, atol=1e-9)


def test_domains_that_are_not_known_are_drawn_until_they_are() -> None:
    gram = GRAM.copy()
    gram[2] = gram[:, 2] = np.nan
    weights, _ = settled(statistics(gram, grad_var=[1.0, 1.0, np.nan]))
    assert weights.objective[1] > 0.8
    assert weights.sampling[2] > 0.1
    assert weights.objective[2] < 0.001


def test_domains_of_less_than_two_rows_a_step_get_them_in_turn() -> None:
    K = 40
    info = Domains([str(i) for i in range(K)], [1000] * K, [1] + [0] * (K - 1))
    stats = DomainStats(grad_var=np.ones(K), grad_gram=np.eye(K))
    policy = Transfer()
    weights, state = policy.init(info, Run(batch_size=64, horizon=100_000))
    pairs = np.zeros(K)
    for _ in range(40):
        weights, state = policy.update(stats, state)
        pairs += weights.sampling >= 1.99 / 64
        assert weights.sampling[0] > 0.85
    assert (pairs[1:] >= 1).all()


def parts(sizes: dict[str, int], *, seed: int) -> dict[str, TensorDataset]:
    """Linear regression: "helper" has the target's coefficients, "other" their opposite."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(4, generator=generator, dtype=torch.float64)
    sets = {}
    for name, size in sizes.items():
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        y = x @ slope * (-1.0 if name == "other" else 1.0)
        sets[name] = TensorDataset(x, y + torch.randn(size, generator=generator).double())
    return sets


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")
def test_a_run_finds_the_helper_and_its_gradient_is_the_stated_objective() -> None:
    mixture = Mixture(
        parts({"target": 20, "helper": 400, "other": 400}, seed=0),
        importance={"target": 1.0, "helper": 0.0, "other": 0.0},
    )
    torch.manual_seed(0)
    net = nn.Linear(4, 1, bias=False).double()
    controller = Controller(mixture, net, policy="transfer", update_every=2, lag=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    for (x, y), draw in controller.loader(24, steps=120).with_draws():
        losses = (net(x).squeeze(1) - y) ** 2
        controller.loss(losses, draw=draw).backward()
        factors = torch.from_numpy(controller.weights.objective / draw.domain_shares)
        with torch.no_grad():
            slopes = 2.0 * (net(x).squeeze(1) - y) * factors[draw.domains] / len(draw)
        torch.testing.assert_close(net.weight.grad, (slopes @ x)[None], rtol=1e-10, atol=1e-12)
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    _, helper, other = controller.weights.objective
    assert helper > 0.2
    assert other < 0.05
    values = controller.scalars()
    assert values["helps/helper"] > 0.2
    assert "loss_weight/helper" not in values
    assert "helps by" in (table := controller.report())
    assert "Trained on the sum over domains of objective times mean loss per sample." in table
