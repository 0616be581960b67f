"""One process of a run: it trains as a user would, and writes down what it was handed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.data import Dataset

from adaptmix import Controller, Mixture, Schedule, Weights, policies
from adaptmix.data import Plan
from tests.leaving import leave
from tests.trials.reference import Stages
from tests.trials.specs import Part, Spec


class Rows(Dataset[Any]):
    """Rows that know their domain and number, with something drawn at random."""

    def __init__(self, name: str, size: int) -> None:
        self.number, self.size = int(name[1:]), size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> Any:
        features = np.random.default_rng((self.number, row)).standard_normal(3)
        return torch.tensor([self.number, row, random.random(), *features], dtype=torch.float64)


@dataclass(frozen=True)
class Jumping:
    """A policy whose weights jump at every update, by a rule that anyone can repeat."""

    requires = frozenset[str]()

    def init(self, domains: Any, run: Any) -> dict[str, Any]:
        return {"updates": 0, "importance": domains.importance}

    def update(self, stats: Any, state: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        updates, importance = state["updates"] + 1, state["importance"]
        shares, loss = (np.array(part) for part in jumped(updates, importance.size))
        weights = Weights(shares, loss / (loss @ importance), importance)
        return weights, {"updates": updates, "importance": importance}


def jumped(updates: int, domains: int) -> tuple[list[float], list[float]]:
    """Shares and loss weights, unscaled, after so many updates."""
    places = range(domains)
    shares = [1.0 + (3 * i + 5 * updates) % 7 for i in places]
    return [s / sum(shares) for s in shares], [1.0 + (2 * i + updates) % 3 for i in places]


def policy(name: str) -> Any:
    """The policy that a spec names."""
    return {"jumping": Jumping(), "temperature": policies.Temperature(0.5)}.get(name, name)


def build(spec: Spec, part: Part) -> tuple[Controller, nn.Module]:
    """The controller of a part of a run, and its model."""
    importance: Any = part.importance
    if part.stages is not None:
        importance = Schedule(part.stages.weights, interpolate=way(part.stages))
    sampling = None
    if part.sampling is not None:
        sampling = Schedule(part.sampling.weights, interpolate=way(part.sampling))
    mixture = Mixture(
        {name: Rows(name, size) for name, size in part.sizes.items()}, importance=importance
    )
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    controller = Controller(
        mixture,
        model,
        policy=policy(spec.policy),
        update_every=spec.update_every,
        measure_every=spec.measure_every,
        counts=spec.counts,
        lag=spec.lag,
        seed=spec.seed,
        when_exhausted=spec.way,
        max_epochs=part.epochs or None,
        holdout=spec.held or None,
        sampling=sampling,
        seed_rows=True,
    )
    return controller, model


def way(stages: Stages) -> str:
    """How stages go over into each other, as ``Schedule`` has it."""
    return "linear" if stages.linear else "step"


class Log:
    """A file of lines, each of which is written at once or, where the process is killed, not."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **values: Any) -> None:
        os.write(self._file, (json.dumps(values) + "\n").encode())


def work(spec: Spec, number: int, rank: int, folder: Path) -> None:
    """Train a part of a run in this process, from the last checkpoint to the part's end."""
    part = spec.parts[number]
    torch.set_num_threads(1)
    log = Log(folder / f"log-{number}-{rank}")
    try:
        if part.world > 1:
            distributed.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous-{number}",
                rank=rank,
                world_size=part.world,
            )
        train(spec, number, rank, folder, log)
    except Exception as error:
        log.write(error=type(error).__name__, text=str(error))
    leave()


def train(spec: Spec, number: int, rank: int, folder: Path, log: Log) -> None:
    part = spec.parts[number]
    controller, model = build(spec, part)
    published = spy(controller)
    checkpoint = folder / "checkpoint"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        changed = state["mixture"] != part.mixture
        controller.load_state_dict(state["controller"], changed=changed)
    begun = controller.completed
    for batch, draw, factors, last in batches(controller, model, spec, part):
        micro = {
            "batch": batch[:, :3].tolist(),
            "fresh": draw.fresh.tolist(),
            "held": None if draw.held is None else draw.held.tolist(),
            "factors": factors,
            "ordinal": draw.ordinal,
        }
        if draw.ordinal % draw.layout.accumulation == 0:
            micros, objective = [], controller.weights.objective.tolist()
        micros.append(micro)
        if not last:
            continue
        step, divisors, spent = draw.step, draw.domain_shares.tolist(), draw.spent
        controller.step()
        if step in spec.pins:
            name, share = spec.pins[step]
            controller.pin(name, sampling=share)
        log.write(
            step=step,
            micros=micros,
            divisors=divisors,
            spent=None if spent is None else spent.tolist(),
            objective=objective,
            published=list(published),
        )
        published.clear()
        done = controller.completed
        if done % spec.save_every == 0 or done - begun == part.steps:
            save(controller, part.mixture, rank, checkpoint, log, published)
        if done - begun == part.steps:
            break
    else:
        save(controller, part.mixture, rank, checkpoint, log, published)
    log.write(end=controller.completed)


def batches(
    controller: Controller, model: nn.Module, spec: Spec, part: Part
) -> Iterator[tuple[Any, Any, list[float], bool]]:
    """Yield each batch, its draw, its losses' factors, and whether it is the last of its step."""
    options: dict[str, Any] = {"accumulation": part.accumulation, "num_workers": part.workers}
    if part.workers:
        options["prefetch_factor"] = 1
    batch_size = spec.size // part.accumulation // part.world
    length: dict[str, Any] = {"epochs": part.passes} if part.passes else {"steps": part.horizon}
    loader = controller.loader(batch_size, **length, **options)
    while len(loader):
        for batch, draw in loader.with_draws():
            losses = (model(batch[:, 3:]).squeeze(1) - batch[:, 0]).square()
            loss = controller.loss(losses, draw=draw)
            [slopes] = torch.autograd.grad(loss, losses, retain_graph=True)
            loss.backward()
            factors = (slopes * draw.layout.process_rows).tolist()
            yield batch, draw, factors, (draw.ordinal + 1) % draw.layout.accumulation == 0


def spy(controller: Controller) -> list[Any]:
    """A list that gets (first step in force, shares) of all that is published."""
    found: list[Any] = []
    plan = controller._plan
    assert isinstance(plan, Plan)
    publish = plan.publish

    def published(shares: Any, *, between_steps: bool = True) -> None:
        later = plan.completed + plan.lag + (not between_steps)
        found.append((0 if plan.untouched else later, shares.tolist()))
        publish(shares, between_steps=between_steps)

    plan.publish = published  # type: ignore[method-assign]
    return found


def save(
    controller: Controller, mixture: int, rank: int, path: Path, log: Log, published: list[Any]
) -> None:
    """Write a checkpoint, at once or not at all, and before it what saving has published."""
    state = controller.state_dict()
    log.write(saved=controller.completed, published=list(published))
    published.clear()
    if rank == 0:
        torch.save(
            {"mixture": mixture, "completed": controller.completed, "controller": state},
            path.with_suffix(".new"),
        )
        path.with_suffix(".new").replace(path)
