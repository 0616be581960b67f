"""A run whose rows somebody else's loader draws, as tests drive it."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaptmix import Controller, Domains, DomainStats, Weights
from adaptmix.policies import Static

NAMES = ("a", "b", "c")
IMPORTANCE = np.array([0.5, 0.3, 0.2])
# Loss weights 1, 2 and .5, scaled so that Σ π w = 1.
OBJECTIVE = IMPORTANCE * np.array([1.0, 2.0, 0.5]) / 1.2
LOSS = dict(zip(NAMES, (OBJECTIVE / IMPORTANCE).tolist(), strict=True))
# Two rows of each domain, of one or two tokens; the derivative of each token's loss.
SLOPES = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TOKENS = torch.tensor([[1, 2], [2, 2], [1, 1]])
KEPT = torch.arange(2) < TOKENS[..., None]
LENGTHS = dict(zip(NAMES, TOKENS.double().mean(1).tolist(), strict=True))


class Listener:
    """What somebody else's loader remembers of what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def __call__(self, version: int, shares: dict[str, float]) -> None:
        self.told.append((version, shares))

    @property
    def version(self) -> int:
        return self.told[-1][0]

    def shares(self, version: int = -1) -> NDArray[np.float64]:
        return np.array(list(self.told[version][1].values()))


def made(
    batch_size: int = 2, *, steps: int = 100, accumulation: int = 1, **options: Any
) -> tuple[Controller, Listener]:
    """A controller of three domains, and what hears of its shares."""
    options = {"policy": Static({"a": 0.2, "b": 0.3, "c": 0.5}, LOSS)} | options
    controller, listener = Controller(Domains(NAMES, importance=IMPORTANCE), **options), Listener()
    controller.on_publish(listener)
    controller.expect(batch_size, steps=steps, accumulation=accumulation)
    return controller, listener


class Cycle:
    """A user's own policy: shares that run through three settings, whatever the statistics."""

    requires = frozenset[str]()
    settings = ((0.7, 0.2, 0.1), (0.1, 0.7, 0.2), (0.1, 0.1, 0.8))

    def init(self, domains: object, run: object) -> int:
        return 0

    def update(self, stats: DomainStats, state: int) -> tuple[Weights, int]:
        return Weights(self.settings[state % 3], np.ones(3), IMPORTANCE), state + 1


def train(
    controller: Controller, listener: Listener, rng: np.random.Generator, *, ahead: int = 3
) -> list[tuple[int, float]]:
    """Train to the end with batches that are drawn ahead; the version and loss of each."""
    assert controller._sampler is not None
    batch_size, trained = controller._sampler.layout.batch_size, []
    waiting: deque[Any] = deque()
    while controller.completed < controller._horizon:
        while len(waiting) <= ahead:
            chances = listener.shares()
            domains = rng.choice(3, size=batch_size, p=chances / chances.sum())
            waiting.append((listener.version, domains, rng.integers(2, size=batch_size)))
        version, domains, rows = waiting.popleft()
        losses = SLOPES[domains, rows].square() * torch.ones(1, requires_grad=True)
        loss = controller.loss(losses, draw=controller.foreign(domains, version=version))
        loss.backward()
        controller.step()
        trained.append((version, float(loss.detach())))
    return trained
