"""The mean gradient is the objective's, whoever draws rows and whatever their shares follow.

The model stands still, so that each row has one gradient, and the sum of a run's errors has mean 0.
Hotelling's T² tests that over independent runs: a false alarm in 10 000 for each case, in 1 000 for
all of them. Seeds are fixed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from adaptmix import Controller, Domains, DomainStats, Draw, Mixture, Schedule, Weights
from tests.elsewhere import IMPORTANCE, NAMES, Cycle, Listener

FALSE_ALARM = 1e-4
RUNS, STEPS, BATCH, TOKENS, PARAMETERS = 44, 20, 5, 3, 3
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
OPTIONS: dict[str, Any] = {"update_every": 1, "lag": 2}


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


Step = tuple[NDArray[np.float64], NDArray[np.float64]]
"""A step's gradient, and its (3,) objective."""


class Chasing(Cycle):
    """Shares that change a lot, and follow the losses seen so far, as adaptive policies' do."""

    requires = frozenset({"loss_mean"})

    def update(self, stats: DomainStats, state: int) -> tuple[Weights, int]:
        seen = np.nan_to_num(stats.loss_mean, nan=4.0)
        shares = np.array(self.settings[state % 3]) / seen
        return Weights(shares / shares.sum(), np.ones(3), IMPORTANCE), state + 1


def elsewhere(unit: str, seed: int, *, mistaken: bool) -> Iterator[Step]:
    """Rows that another loader draws ahead, each with the shares that were newest then.

    The mistake is to go by today's shares.
    """
    options = {"update_every": 1, **token_options(unit)}
    controller = Controller(Domains(NAMES, importance=IMPORTANCE), policy=Chasing(), **options)
    size = 3 * BATCH  # else the mistake would need more runs to be seen
    listener, rng = Listener(), np.random.default_rng(seed)
    controller.on_publish(listener)
    controller.expect(size, steps=STEPS)
    waiting: deque[tuple[int, int]] = deque()
    for _ in range(STEPS):
        while len(waiting) < 4 * size:
            domain = rng.choice(3, p=listener.shares())
            row = rng.integers(*STARTS[domain : domain + 2])
            waiting.append((row, listener.version))
        rows, versions = zip(*(waiting.popleft() for _ in range(size)), strict=True)
        domains = DOMAIN_OF[list(rows)]
        drawn = {"shares": listener.shares()[domains]} if mistaken else {"version": versions}
        draw = controller.foreign(torch.from_numpy(domains), **drawn)
        yield gradient(controller, draw, torch.tensor(rows)), IMPORTANCE


def mixture(importance: Any) -> Mixture:
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    return Mixture(dict(zip(NAMES, parts, strict=True)), importance=importance)


# A policy that reacts to losses within a pass without replacement favours what is left of it, if
# ever so little; shares that change whatever was drawn do not.
def stages(unit: str, seed: int, *, mistaken: bool) -> Iterator[Step]:
    """An objective that changes over the steps; the mistake is to go by its mean."""
    schedule = Schedule(
        {0: {"a": 0.6, "b": 0.3, "c": 0.1}, 15: {"a": 0.1, "b": 0.3, "c": 0.6}},
        interpolate="linear",
    )
    options = {**OPTIONS, **token_options(unit)}
    controller = Controller(mixture(schedule), policy="static", seed=seed, **options)
    for rows, draw in controller.loader(BATCH, steps=STEPS).with_draws():
        objective = schedule.mean if mistaken else schedule.at(draw.step)
        yield gradient(controller, draw, rows), objective


def scheduled_shares(unit: str, seed: int, *, mistaken: bool) -> Iterator[Step]:
    """Shares that change over the steps; the mistake is to take them for the objective."""
    stages = {0: {"a": 0.3, "b": 0.1, "c": 0.6}, 10: {"a": 0.1, "b": 0.2, "c": 0.7}}
    options = {**OPTIONS, **token_options(unit), "sampling": Schedule(stages)}
    fixed = mixture(dict(zip(NAMES, IMPORTANCE.tolist(), strict=True)))
    controller = Controller(fixed, policy="static", seed=seed, **options)
    for rows, draw in controller.loader(BATCH, steps=STEPS).with_draws():
        shares = options["sampling"].at(draw.step)
        yield gradient(controller, draw, rows), shares if mistaken else IMPORTANCE


def caps(unit: str, seed: int, *, mistaken: bool, **limits: Any) -> Iterator[Step]:
    """Domains that run out; the mistake is to forget what that does.

    Where they end, the objective is that of the others; where they last, it stays.
    """
    options = {**OPTIONS, **token_options(unit), **limits}
    fixed = mixture(dict(zip(NAMES, IMPORTANCE.tolist(), strict=True)))
    controller = Controller(fixed, policy=Cycle(), seed=seed, **options)
    for rows, draw in controller.loader(BATCH, steps=STEPS).with_draws():
        left = np.ones(3) if draw.spent is None else ~draw.spent
        if mistaken:
            left = np.ones(3) if draw.spent is not None else np.array([0.5, 1.0, 1.0])
        yield gradient(controller, draw, rows), IMPORTANCE * left / (IMPORTANCE @ left)


def held_back(unit: str, seed: int, *, mistaken: bool) -> Iterator[Step]:
    return caps(unit, seed, mistaken=mistaken, max_epochs={"a": 1.5, "b": 2})


def dropped(unit: str, seed: int, *, mistaken: bool) -> Iterator[Step]:
    limits = {"max_epochs": {"a": 1.5, "b": 9, "c": 9}, "when_exhausted": "drop"}
    return caps(unit, seed, mistaken=mistaken, **limits)


CASES = [elsewhere, stages, scheduled_shares, held_back, dropped]


def chance(case: Callable[..., Iterator[Step]], unit: str, *, mistaken: bool = False) -> float:
    """The probability of errors as large as those found, if their mean is 0."""
    of_domains, errors = means(unit), []
    for seed in range(RUNS):
        steps = list(case(unit, seed, mistaken=mistaken))
        errors.append(sum(found - objective @ of_domains for found, objective in steps))
    table = np.stack(errors)
    mean, spread = table.mean(0), np.cov(table.T)
    squared = RUNS * float(mean @ np.linalg.solve(spread, mean))
    ratio = squared * (RUNS - PARAMETERS) / (PARAMETERS * (RUNS - 1))
    return float(stats.f.sf(ratio, PARAMETERS, RUNS - PARAMETERS))


@pytest.mark.filterwarnings("ignore::adaptmix.errors.UnseenDomainWarning")
@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")
@pytest.mark.filterwarnings("ignore::adaptmix.errors.CollapseWarning")
@pytest.mark.parametrize("unit", ["sample", "token"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_error_of_the_gradient_is_zero(case: Any, unit: str) -> None:
    assert chance(case, unit) > FALSE_ALARM


@pytest.mark.filterwarnings("ignore::adaptmix.errors.UnseenDomainWarning")
@pytest.mark.filterwarnings("ignore::adaptmix.errors.RepetitionWarning")
@pytest.mark.filterwarnings("ignore::adaptmix.errors.CollapseWarning")
@pytest.mark.parametrize("case", [elsewhere, stages, dropped])
def test_a_mistake_would_be_seen(case: Any) -> None:
    assert chance(case, "sample", mistaken=True) < FALSE_ALARM / 10
