"""Small real training runs that tests drive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from adaptmix import Controller, Draw, Mixture, noise
from adaptmix._run import Run as ControllerRun

SIZES = (40, 24, 9)
FEATURES, CLASSES = 6, 4


def dataset(size: int, *, seed: int, scale: float) -> TensorDataset:
    """Rows of float64 features, a class and the row's own number."""
    generator = torch.Generator().manual_seed(seed)
    inputs = scale * torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (size,), generator=generator)
    return TensorDataset(inputs, targets, torch.arange(size))


def mixture(importance: dict[str, float] | None = None) -> Mixture:
    """Three domains of different size and input scale."""
    parts = {
        name: dataset(size, seed=i, scale=3.0**i)
        for i, (name, size) in enumerate(zip("abc", SIZES, strict=True))
    }
    return Mixture(parts, importance=importance)


def model(seed: int = 0) -> nn.Sequential:
    """A float64 classifier that the probe covers wholly."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def parameters(net: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def record_draws(monkeypatch: pytest.MonkeyPatch) -> list[Draw]:
    """Return a list that gets the draw of each micro-batch that is trained from here on."""
    draws: list[Draw] = []
    native = ControllerRun._record

    def record(run: ControllerRun, total: Tensor, draw: Draw, *args: Any, **options: Any) -> None:
        draws.append(draw)
        native(run, total, draw, *args, **options)

    monkeypatch.setattr(ControllerRun, "_record", record)
    return draws


def held_places(draws: list[Draw]) -> set[tuple[int, int]]:
    """Return micro-batch and place of each held-out row."""
    return {
        (micro, place)
        for micro, draw in enumerate(draws)
        if draw.held is not None
        for place in draw.held.nonzero().flatten().tolist()
    }


class _Scale(torch.autograd.Function):
    """A product with an autograd function of its own, as fused kernels have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum().reshape(1)


class Hidden(nn.Module):
    """Its parameter is used where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = _Scale.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return scaled


class Run:
    """A loop as a user would write it, which can stop and go on.

    Args:
        controller: of the run.
        net: trained model.
        batch_size: per process.
        steps: of the whole run.
        accumulation: micro-batches per step.
        wrap: applied to the model before training, as DistributedDataParallel would be.
        options: of the loader.
    """

    def __init__(
        self,
        controller: Controller,
        net: nn.Module,
        *,
        batch_size: int = 12,
        steps: int = 40,
        accumulation: int = 1,
        with_noise: bool = True,
        wrap: Callable[[nn.Module], nn.Module] = lambda net: net,
        **options: Any,
    ) -> None:
        self.controller, self.net, self.wrapped = controller, net, wrap(net)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        self.accumulation, self.with_noise = accumulation, with_noise
        self.rows: list[list[int]] = []
        self.weights: list[list[float]] = []
        self.loader = controller.loader(
            batch_size, steps=steps, accumulation=accumulation, **options
        )

    def train(self, stop: int | None = None) -> Run:
        """Train to the end, or until ``stop`` steps are completed."""
        for (inputs, targets, _), draw in self.loader.with_draws():
            logits = self.wrapped(inputs)
            losses = F.cross_entropy(logits, targets, reduction="none")
            terms = noise.softmax(logits, targets) if self.with_noise else None
            self.controller.loss(losses, draw=draw, noise=terms).backward()
            self.rows.append(draw.rows.tolist())
            if (draw.ordinal + 1) % self.accumulation:
                continue
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.controller.step()
            weights = self.controller.weights
            self.weights.append([*weights.sampling.tolist(), *weights.loss.tolist()])
            if self.controller.completed == stop:
                break
        return self

    def state_dict(self) -> dict[str, Any]:
        """What a user saves."""
        return {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "controller": self.controller.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What a user restores."""
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.load_state_dict(state["controller"])


def plain_loader(mix: Mixture, rows: list[list[int]]) -> DataLoader[Any]:
    """Batches of the given rows from an ordinary DataLoader."""
    return DataLoader(mix, batch_sampler=rows)


def started(controller: Controller, **options: Any) -> tuple[Controller, Any]:
    """A controller whose first batch of eight was drawn, and its draw."""
    loader = controller.loader(8, steps=4, **options)
    return controller, next(iter(loader.with_draws()))[1]
