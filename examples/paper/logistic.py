"""Logistic regression: domains share one true parameter, but labels of some are flipped.

What counts is the excess risk on right labels, E[loss(θ) − loss(θ*)], which is known exactly for
each row. A flipped domain is misspecified: its best parameter is shorter than the true one. So the
sizes tell little of what a domain is worth, and Joint goes by noise alone (its default). The step
size is the same for all policies, for the curvature changes with θ.

Source: Salmani et al., Sampling and Loss Weights in Multi-Domain Training, arXiv:2511.06913.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from common import Experiment, collate, make_policy
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture, noise
from adaptmix.policies import Joint

DIMENSION = 10
BATCH = 16
HELD_OUT = 500
TEST = 2000
EVERY = 10
LENGTH = 3.0  # of the true parameter: most labels follow from their row
RATE, DECAY = 1.0, 50.0


@dataclass(frozen=True)
class Setting:
    """Domains by their share of flipped labels and training rows."""

    flipped: tuple[float, ...]
    sizes: tuple[int, ...]
    steps: int = 200


def make_domains(
    setting: Setting, theta: Tensor, sizes: tuple[int, ...], rng: torch.Generator
) -> dict[str, TensorDataset]:
    """Return rows (x, y) per domain, y being 0 or 1 and wrong in a share of the rows."""
    parts = {}
    for i, size in enumerate(sizes):
        x = torch.randn(size, DIMENSION, generator=rng)
        right = torch.rand(size, generator=rng) < torch.sigmoid(x @ theta)
        wrong = torch.rand(size, generator=rng) < setting.flipped[i]
        parts[str(i)] = TensorDataset(x, (right ^ wrong).float())
    return parts


def dispersion(logits: Tensor, labels: Tensor) -> noise.NoiseTerms:
    """Return the noise terms of a sigmoid, which is a softmax over a logit and 0."""
    return noise.softmax(torch.stack([torch.zeros_like(logits), logits], -1), labels.long())


def train(setting: Setting, policy: str, seed: int) -> list[float]:
    """Return the excess risk on right labels every few steps."""
    rng = torch.Generator().manual_seed(seed)
    theta = torch.randn(DIMENSION, generator=rng)
    theta *= LENGTH / theta.norm()
    mixture = Mixture(make_domains(setting, theta, setting.sizes, rng))
    held_out = make_domains(setting, theta, (HELD_OUT,) * len(setting.sizes), rng)
    test = torch.randn(TEST, DIMENSION, generator=rng)
    chance = torch.sigmoid(test @ theta)
    best = binary_cross_entropy_with_logits(test @ theta, chance)
    model = torch.nn.Linear(DIMENSION, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    chosen = make_policy(policy, mixture, Joint(bias="ignored"))
    controller = Controller(
        mixture,
        policy=chosen,
        measure_every=10,
        estimator="exact",
        lag=0,
        seed=seed,
        holdout=None,
    )
    controller.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    risks = []

    def record_noise() -> None:
        with torch.no_grad():
            for name, rows in held_out.items():
                logits = model(rows.tensors[0]).squeeze(1)
                controller.record_noise(dispersion(logits, rows.tensors[1]), name)

    record_noise()
    loader = controller.loader(BATCH, steps=setting.steps, collate_fn=collate)
    for (x, y), draw in loader.with_draws():
        optimizer.param_groups[0]["lr"] = RATE / (1.0 + draw.step / DECAY)
        losses = binary_cross_entropy_with_logits(model(x).squeeze(1), y, reduction="none")
        controller.loss(losses, draw=draw).backward()
        optimizer.step()
        optimizer.zero_grad()
        if draw.step % EVERY == 0:
            record_noise()
        if draw.step % EVERY == EVERY - 1:
            with torch.no_grad():
                logits = model(test).squeeze(1)
                risks.append(float(binary_cross_entropy_with_logits(logits, chance) - best))
        controller.step()
    return risks


EXPERIMENT = Experiment(
    name="logistic",
    error="excess risk",
    settings={
        "alike": Setting((0.0, 0.0), (500, 500)),
        "none, 40 % flipped": Setting((0.0, 0.4), (300, 900)),
        "none, 20 %, 40 % flipped": Setting((0.0, 0.2, 0.4), (300, 300, 900)),
    },
    train=train,
    every=EVERY,
)
