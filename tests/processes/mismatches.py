"""Ways in which two processes can differ, and ways in which they may."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from adaptmix import Controller, Mixture, policies
from tests import runs

# A collective that waits this long is one that the other process is not in.
PATIENCE = timedelta(seconds=30)


STEPS = 9


def run(net: torch.nn.Module | None = None, *, watch: bool = True, **options: Any) -> runs.Run:
    """A run as every process should build it, and what this one does otherwise."""
    loader = {"batch_size": 6, "accumulation": 1, "steps": STEPS}
    loader |= {key: options.pop(key) for key in list(options) if key in loader}
    mixture = options.pop("mixture", None) or runs.mixture()
    settings = {"policy": "joint", "update_every": 3, "lag": 4, **options}
    net = net or runs.model()
    controller = Controller(mixture, **settings)
    if watch:
        controller.watch(net)
    return runs.Run(controller, net, wrap=DistributedDataParallel, **loader)  # type: ignore[arg-type]


def parts(sizes: dict[str, int], importance: dict[str, float] | None = None) -> Mixture:
    data = {
        name: runs.dataset(size, seed=i, scale=1.0) for i, (name, size) in enumerate(sizes.items())
    }
    return Mixture(data, importance=importance)


def labelled(shift: int) -> Mixture:
    labels = ["abc"[(row + shift) % 3] for row in range(30)]
    return Mixture.from_labels(runs.dataset(30, seed=0, scale=1.0), labels)


class Rated:
    """A policy that is no dataclass, with a setting."""

    requires = frozenset[str]()

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def init(self, domains: Any, run: Any) -> Any:
        return policies.Static().init(domains, run)

    def update(self, stats: Any, state: Any) -> Any:
        return policies.Static().update(stats, state)


SIZES = {"a": 40, "b": 24, "c": 9}


# What rank 0 and rank 1 are built with, and what the error names.
BUILT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "order": ({}, {"mixture": lambda: parts({"c": 9, "b": 24, "a": 40})}, "domains[0]"),
    "number of domains": ({}, {"mixture": lambda: parts({"a": 40, "b": 24})}, "domains"),
    "sizes": ({}, {"mixture": lambda: parts({**SIZES, "b": 23})}, "sizes['b']"),
    "importance": (
        {"mixture": lambda: parts(SIZES, {"a": 1.0, "b": 1.0, "c": 1.0})},
        {"mixture": lambda: parts(SIZES, {"a": 2.0, "b": 1.0, "c": 1.0})},
        "importance['a']",
    ),
    "labels": ({"mixture": lambda: labelled(0)}, {"mixture": lambda: labelled(1)}, "labels"),
    "seed": ({}, {"seed": 1}, "seed"),
    "policy": ({}, {"policy": "variance_aware"}, "policy"),
    "its settings": (
        {"policy": policies.Static(loss={"a": 2.0, "b": 1.0, "c": 1.0})},
        {"policy": policies.Static(loss={"a": 1.0, "b": 1.0, "c": 1.0})},
        "policy.loss.a",
    ),
    "a user's policy": ({"policy": Rated(0.1)}, {"policy": Rated(0.2)}, "policy.rate"),
    "lag": ({}, {"lag": 8}, "lag"),
    "counts": ({}, {"counts": "multinomial"}, "counts"),
    "mode": ({}, {"mode": "observe"}, "mode"),
    "unit": ({}, {"unit": "token"}, "unit"),
    "half-life": ({}, {"half_life": 9.0}, "half_life"),
    "update_every": ({}, {"update_every": 2}, "update_every"),
    "measure_every": ({}, {"measure_every": 1}, "measure_every"),
    "estimator": ({}, {"estimator": "exact"}, "estimator"),
    "tokens_per_row": (
        {"unit": "token", "tokens_per_row": dict.fromkeys("abc", 1.0)},
        {"unit": "token", "tokens_per_row": {"a": 1.0, "b": 1.0, "c": 2.0}},
        "tokens_per_row['c']",
    ),
    "batch": ({}, {"batch_size": 4}, "batch_size"),
    "accumulation": ({}, {"accumulation": 2, "batch_size": 3}, "batch_size"),
    "steps": ({}, {"steps": 8}, "steps"),
    "watched": ({}, {"watch": False}, "watched"),
}


def built(name: str, rank: int) -> None:
    options = dict(BUILT[name][:2][rank])
    if "mixture" in options:
        options["mixture"] = options["mixture"]()
    run(**options).train()


def grouped(rank: int) -> None:
    mine = run(accumulation=2, batch_size=3)
    if rank == 1:
        mine.loader.sampler.group_by_length(range(len(mine.controller.mixture)))
    mine.train()


def pinned_first(rank: int) -> None:
    mine = run()
    if rank == 0:
        mine.controller.pin("a", loss=0.5)
    mine.train()


def after(step: int, mine: runs.Run, action: Callable[[], Any]) -> None:
    """Do something in the middle of an iteration of the loader."""
    count = mine.controller.step

    def count_and_do() -> None:
        count()
        if mine.controller.completed == step:
            action()

    mine.controller.step = count_and_do  # type: ignore[method-assign]


def pinned_on_the_way(rank: int) -> None:
    mine = run()
    if rank == 1:
        after(4, mine, lambda: mine.controller.pin("a", loss=0.5))
    try:
        mine.train()
    finally:
        assert mine.controller.completed == 6
        assert all(weights[3] != 0.5 for weights in mine.weights)  # it never counted


def pinned_before_saving(rank: int) -> None:
    mine = run().train(4)
    if rank == 1:
        mine.controller.pin("a", loss=0.5)
    mine.state_dict()


def loaded_by_one(rank: int) -> None:
    state = run().train(5).state_dict()
    again = run()
    if rank == 0:
        again.load_state_dict(state)
    again.train()


def loaded_another(rank: int) -> None:
    first = run().train(3)
    states = [first.state_dict(), first.train(6).state_dict()]
    again = run()
    again.load_state_dict(states[rank])
    again.train()


def loaded_on_the_way(rank: int) -> None:
    mine = run().train(3)
    state = mine.state_dict()
    mine.train(6)
    if rank == 1:
        mine.load_state_dict(state)
    mine.train()


def unwatched_on_the_way(rank: int) -> None:
    net = runs.model()
    mine = run(net, watch=False)
    handle = mine.controller.watch(net)
    if rank == 1:
        after(4, mine, handle.remove)
    mine.train()


def without_backward(rank: int) -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), policy="variance_aware", update_every=1)
    controller.watch(net)
    for (inputs, targets, _), draw in controller.loader(6, steps=4).with_draws():
        losses = F.cross_entropy(net(inputs), targets, reduction="none")
        loss = controller.loss(losses, draw=draw)
        if rank == 0:
            loss.backward()
        controller.step()


# What a process does, and what the error of both says.
DONE: dict[str, tuple[Callable[[int], None], str]] = {
    "rows grouped by length by one": (grouped, "grouped_by_length differs"),
    "a pin before the first step": (pinned_first, "pins.loss[0]['a'] differs"),
    "a pin on the way": (pinned_on_the_way, "pins.loss[0]['a'] differs"),
    "a pin before saving": (pinned_before_saving, "pins.loss[0]['a'] differs"),
    "a checkpoint loaded by one": (loaded_by_one, "completed differs"),
    "another checkpoint": (loaded_another, "completed differs"),
    "a checkpoint loaded on the way": (loaded_on_the_way, "completed differs"),
    "a probe removed on the way": (unwatched_on_the_way, "watched differs"),
    "no backward on one": (without_backward, "Rank 1 cannot go on: loss() must be followed by"),
}


def noise_by_one(rank: int) -> Any:
    """Not wrong: what is known of noise comes from the rows that tell it."""
    mine = run(policy="joint")
    mine.with_noise = rank == 0
    mine.train()
    return mine.weights, mine.controller.statistics.noise.tolist()


def losses_by_one(rank: int) -> Any:
    """Not wrong either; with unit "token", row lengths come from the rows that tell them."""
    net = runs.model()
    controller = Controller(runs.mixture(), policy="variance_aware", update_every=2, unit="token")
    controller.watch(net)
    wrapped = DistributedDataParallel(net)
    for (inputs, targets, _), draw in controller.loader(6, steps=STEPS).with_draws():
        losses = F.cross_entropy(wrapped(inputs), targets, reduction="none")
        factors = controller.multipliers(draw) / 12
        loss = losses @ factors.double()
        controller.observe(
            loss, draw=draw, factors=factors, losses=losses.unsqueeze(1) if rank == 0 else None
        )
        loss.backward()
        controller.step()
    return controller.weights.sampling.tolist(), controller.statistics.loss_mean.tolist()


def pinned_by_all(_rank: int) -> Any:
    mine = run(policy="static")
    after(4, mine, lambda: mine.controller.pin("a", loss=0.5))
    mine.train()
    return [weights[3] for weights in mine.weights]


def tensor_parallel(rank: int) -> Any:
    """Ranks that share layers draw the same rows, once they say so."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    net = runs.model()
    parallelize_module(net, mesh["tp"], {"0": ColwiseParallel()})
    with pytest.raises(ValueError, match=r"^process_group must be given .*'0.weight'"):
        Controller(runs.mixture()).watch(net)
    controller = Controller(
        runs.mixture(), policy="static", process_group=mesh["dp"].get_group(), update_every=2
    )
    others = dist.new_group([0])
    if rank == 1:
        with pytest.raises(ValueError, match=r"^process_group must hold this process, rank 1;"):
            Controller(runs.mixture(), process_group=others)
    with pytest.raises(TypeError, match=r'got DeviceMesh\. Of a device mesh take mesh\["dp"\]'):
        Controller(runs.mixture(), process_group=mesh)  # type: ignore[arg-type]
    rows = []
    for _, draw in controller.loader(6, steps=STEPS).with_draws():
        controller.loss(torch.ones(6, requires_grad=True), draw=draw).backward()
        controller.step()
        rows.append(draw.rows.tolist())
    return rows, float(controller.statistics.seen.sum())


WELL: dict[str, Callable[[int], Any]] = {
    work.__name__: work for work in (noise_by_one, losses_by_one, pinned_by_all, tensor_parallel)
}
