"""A neural network on scikit-learn's digits: 300 clean rows, and 900 with or without wrong labels.

What counts is the error on clean rows that no domain holds. Joint goes by noise alone (its
default): a network's domains have no common optimum that sizes could be weighed against. The step
size is the same for all policies.

Source: Salmani et al., Sampling and Loss Weights in Multi-Domain Training, arXiv:2511.06913.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from common import Experiment, collate, make_policy
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture, noise
from adaptmix.policies import Joint

SIZES = {"clean": 300, "other": 900}
HELD_OUT = 150
BATCH = 32
EVERY = 20
RATE = 2e-3
CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """Share of the other domain's labels that are drawn at random."""

    wrong: float
    steps: int = 320


@cache
def rows() -> tuple[Tensor, Tensor]:
    """Return the (1797, 64) inputs, scaled to [0, 1], and their labels."""
    inputs, labels = load_digits(return_X_y=True)
    return torch.from_numpy(inputs).float() / 16.0, torch.from_numpy(labels)


def split(setting: Setting, rng: torch.Generator) -> tuple[dict[str, TensorDataset], ...]:
    """Return the domains' training rows and held-out rows, and the test rows."""
    x, y = rows()
    order = torch.randperm(len(y), generator=rng)
    parts: tuple[dict[str, TensorDataset], ...] = ({}, {})
    for name, size in SIZES.items():
        mine, order = order[: size + HELD_OUT], order[size + HELD_OUT :]
        labels = y[mine]
        if name == "other":
            wrong = torch.rand(len(mine), generator=rng) < setting.wrong
            drawn = torch.randint(CLASSES, (len(mine),), generator=rng)
            labels = torch.where(wrong, drawn, labels)
        parts[0][name] = TensorDataset(x[mine[:size]], labels[:size])
        parts[1][name] = TensorDataset(x[mine[size:]], labels[size:])
    return *parts, {"test": TensorDataset(x[order], y[order])}


def train(setting: Setting, policy: str, seed: int) -> list[float]:
    """Return the test error every few steps."""
    parts, held_out, test = split(setting, torch.Generator().manual_seed(seed))
    mixture = Mixture(parts)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    controller = Controller(
        mixture,
        policy=make_policy(policy, mixture, Joint(bias="ignored")),
        measure_every=10,
        estimator="exact",
        lag=0,
        seed=seed,
        holdout=None,
    )
    controller.watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    errors = []

    def record_noise() -> None:
        with torch.no_grad():
            for name, part in held_out.items():
                inputs, labels = part.tensors
                controller.record_noise(noise.softmax(model(inputs), labels), name)

    record_noise()
    loader = controller.loader(BATCH, steps=setting.steps, collate_fn=collate)
    for (x, y), draw in loader.with_draws():
        losses = cross_entropy(model(x), y, reduction="none")
        controller.loss(losses, draw=draw).backward()
        optimizer.step()
        optimizer.zero_grad()
        if draw.step % 10 == 0:
            record_noise()
        if draw.step % EVERY == EVERY - 1:
            with torch.no_grad():
                inputs, labels = test["test"].tensors
                errors.append(float((model(inputs).argmax(1) != labels).float().mean()))
        controller.step()
    return errors


EXPERIMENT = Experiment(
    name="digits",
    error="test error",
    settings={"no wrong labels": Setting(0.0), "60 % random labels": Setting(0.6)},
    train=train,
    every=EVERY,
)
