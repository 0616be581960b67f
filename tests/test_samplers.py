"""Stratified and multinomial sampling: each pays for its own moment, and both are unbiased."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adaptmix import Controller, Domains, DomainStats, Mixture, policies
from adaptmix.policies import Joint, Run, VarianceAware
from tests import runs


class Means(torch.utils.data.Dataset[float]):
    """Rows of one number around a mean of the domain's own."""

    def __init__(self, mean: float, deviation: float, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.values = mean + deviation * rng.standard_normal(size)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> float:
        return float(self.values[row])


def batch_gradients(counts: str, shares: dict[str, float], steps: int) -> Any:
    """Gradients of Σ π w (mean of values) θ, that is, the weighted sums the optimizer sees."""
    parts = {"low": Means(0.0, 1.0, 50_000, 1), "high": Means(4.0, 2.0, 50_000, 2)}
    mix = Mixture(parts, importance={"low": 0.75, "high": 0.25})
    static = policies.Static(sampling=shares)
    controller = Controller(mix, policy=static, counts=counts, lag=0, update_every=1, seed=11)
    gradients = []
    for values, draw in controller.loader(10, steps=steps).with_draws():
        theta = torch.ones((), dtype=torch.float64, requires_grad=True)
        controller.loss(theta * values, draw=draw).backward()
        gradients.append(float(theta.grad))  # type: ignore[arg-type]
        controller.step()
    return np.array(gradients[2:]), [part.values for part in parts.values()]


# Under the null the sample variance of 4 000 draws is within 5 standard errors, 5 √(2 / 4000) =
# 11 %, with probability 1 − 6e-7; likewise the mean within 5 standard errors.
@pytest.mark.parametrize("sampler", ["stratified", "multinomial"])
def test_a_batch_has_the_mean_and_the_variance_of_its_sampler(sampler: str) -> None:
    gradients, values = batch_gradients(sampler, {"low": 0.5, "high": 0.5}, 4000)
    pi, p, B = np.array([0.75, 0.25]), 0.5, 10
    means = np.array([v.mean() for v in values])
    centred = np.array([v.var() for v in values])
    assert abs(gradients.mean() - pi @ means) < 5 * gradients.std() / np.sqrt(len(gradients))
    stratified = float(((pi**2 * centred) / (B * p)).sum())
    squares = centred + means**2
    multinomial = float(((pi**2 * squares / p).sum() - (pi @ means) ** 2) / B)
    expected = {"stratified": stratified, "multinomial": multinomial}[sampler]
    assert gradients.var() == pytest.approx(expected, rel=0.11)
    assert multinomial > 1.5 * stratified  # so the two cannot be confused


def test_policies_take_the_moment_that_fits_the_sampler() -> None:
    info = Domains(("a", "b"), [10, 10])
    stats = DomainStats(grad_var=[1.0, 1.0], grad_sq=[1.0, 9.0], noise=[1.0, 1.0])
    for policy in (VarianceAware(), Joint(bias="ignored")):
        for sampler, share in (("stratified", 0.5), ("multinomial", 0.75)):
            state = policy.init(info, Run(100, 10, sampler))
            weights, _ = policy.update(stats, state)
            assert weights.sampling[1] == pytest.approx(share)
    # Single rows tell the second moment, and pairs the variance where there are any.
    assert VarianceAware().requires == {"grad_sq"}
    with pytest.raises(ValueError, match="counts must be one of stratified, multinomial"):
        Controller(runs.mixture(), counts="poisson")


@pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")
def test_a_multinomial_run_adapts_and_resumes() -> None:
    def make(net: torch.nn.Module) -> runs.Run:
        controller = Controller(
            runs.mixture(),
            counts="multinomial",
            update_every=5,
            measure_every=1,
            lag=2,
            policy="joint",
        )
        controller.watch(net)
        return runs.Run(controller, net)

    whole, first, second = (make(runs.model()) for _ in range(3))
    whole.train()
    first.train(17)
    second.load_state_dict(first.state_dict())
    second.train()
    assert first.rows + second.rows == whole.rows
    assert torch.equal(runs.parameters(second.net), runs.parameters(whole.net))
    stats = whole.controller.statistics
    weights = whole.controller.weights
    scale = weights.importance * weights.loss * np.sqrt(stats.grad_sq)
    assert weights.sampling == pytest.approx(scale / scale.sum(), abs=0.1)
