"""Rows of another loader have the objective's mean gradient, however late and old their shares are.

The model stands still, so that each row has one gradient, and the sum of a run's errors has mean 0.
Hotelling's T² tests that over independent runs, with a false alarm in 10 000 seeds for each unit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from adaptmix import Controller, Domains, DomainStats, Draw, Weights
from tests.elsewhere import IMPORTANCE, NAMES, Cycle, Listener

FALSE_ALARM = 1e-4
RUNS, STEPS, BATCH, TOKENS, PARAMETERS = 44, 20, 15, 3, 3
SIZES = (12, 30, 60)
STARTS = np.cumsum((0, *SIZES))
DOMAIN_OF = np.repeat(np.arange(3), SIZES)
_generator = torch.Generator().manual_seed(4)
# The gradient of each token's loss: every domain has a direction of its own, and noise.
GRADIENTS = 3.0 * torch.eye(3, dtype=torch.float64)[DOMAIN_OF][:, None] + torch.randn(
    sum(SIZES), TOKENS, PARAMETERS, generator=_generator, dtype=torch.float64
)
LENGTHS = torch.randint(1, TOKENS + 1, (sum(SIZES),), generator=_generator)
GRADIENTS = GRADIENTS * LENGTHS[:, None, None]
KEPT = torch.arange(TOKENS) < LENGTHS[:, None]


def means(unit: str) -> NDArray[np.float64]:
    """(3, parameters) the mean gradient of each domain's rows, or tokens."""
    of_rows = (GRADIENTS * KEPT[..., None]).sum(1)
    found = []
    for domain in range(3):
        rows, tokens = of_rows[domain == DOMAIN_OF], LENGTHS[domain == DOMAIN_OF, None]
        found.append(rows.sum(0) / tokens.sum() if unit == "token" else (rows / tokens).mean(0))
    return torch.stack(found).numpy()


def token_options(unit: str) -> dict[str, Any]:
    lengths = {name: float(LENGTHS[i == DOMAIN_OF].double().mean()) for i, name in enumerate(NAMES)}
    return {"unit": unit, "tokens_per_row": lengths if unit == "token" else None}


def gradient(controller: Controller, draw: Draw, rows: Tensor) -> NDArray[np.float64]:
    """The gradient that the optimizer sees of a step of one micro-batch."""
    losses = torch.ones(len(rows), TOKENS, dtype=torch.float64, requires_grad=True)
    # What policies see of a row's loss is its own, as of real rows.
    scaled = losses * (1.0 + rows[:, None] % 7)
    loss = controller.loss(scaled, draw=draw, mask=KEPT[rows])
    [by_loss] = torch.autograd.grad(loss, scaled)
    controller.step()
    found: NDArray[np.float64] = torch.einsum("bt,btp->p", by_loss, GRADIENTS[rows]).numpy()
    return found


class Chasing(Cycle):
    """Shares that change a lot, and follow the losses seen so far, as adaptive policies' do."""

    requires = frozenset({"loss_mean"})

    def update(self, stats: DomainStats, state: int) -> tuple[Weights, int]:
        seen = np.nan_to_num(stats.loss_mean, nan=4.0)
        shares = np.array(self.settings[state % 3]) / seen
        return Weights(shares / shares.sum(), np.ones(3), IMPORTANCE), state + 1


def gradients(unit: str, seed: int, *, mistaken: bool) -> Iterator[NDArray[np.float64]]:
    """Rows that another loader draws ahead, each with the shares that were newest then.

    The mistake is to go by today's shares.
    """
    options = {"update_every": 1, **token_options(unit)}
    controller = Controller(Domains(NAMES, importance=IMPORTANCE), policy=Chasing(), **options)
    listener, rng = Listener(), np.random.default_rng(seed)
    controller.on_publish(listener)
    controller.expect(BATCH, steps=STEPS)
    waiting: deque[tuple[int, int]] = deque()
    for _ in range(STEPS):
        while len(waiting) < 4 * BATCH:
            domain = rng.choice(3, p=listener.shares())
            row = rng.integers(*STARTS[domain : domain + 2])
            waiting.append((row, listener.version))
        rows, versions = zip(*(waiting.popleft() for _ in range(BATCH)), strict=True)
        domains = DOMAIN_OF[list(rows)]
        drawn = {"shares": listener.shares()[domains]} if mistaken else {"version": versions}
        draw = controller.foreign(torch.from_numpy(domains), **drawn)
        yield gradient(controller, draw, torch.tensor(rows))


def chance(unit: str, *, mistaken: bool = False) -> float:
    """The probability of errors as large as those found, if their mean is 0."""
    of_domains, errors = means(unit), []
    for seed in range(RUNS):
        steps = list(gradients(unit, seed, mistaken=mistaken))
        errors.append(sum(found - IMPORTANCE @ of_domains for found in steps))
    table = np.stack(errors)
    mean, spread = table.mean(0), np.cov(table.T)
    squared = RUNS * float(mean @ np.linalg.solve(spread, mean))
    ratio = squared * (RUNS - PARAMETERS) / (PARAMETERS * (RUNS - 1))
    return float(stats.f.sf(ratio, PARAMETERS, RUNS - PARAMETERS))


@pytest.mark.filterwarnings("ignore::adaptmix.errors.UnseenDomainWarning")
@pytest.mark.parametrize("unit", ["sample", "token"])
def test_the_mean_error_of_the_gradient_is_zero(unit: str) -> None:
    assert chance(unit) > FALSE_ALARM


@pytest.mark.filterwarnings("ignore::adaptmix.errors.UnseenDomainWarning")
@pytest.mark.parametrize("unit", ["sample", "token"])
def test_todays_shares_would_be_seen_to_be_wrong(unit: str) -> None:
    assert chance(unit, mistaken=True) < FALSE_ALARM / 10
