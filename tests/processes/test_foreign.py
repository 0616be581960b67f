"""Two real processes whose loaders draw with different shares train on one objective."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from adaptmix.errors import ProcessMismatchError
from tests.elsewhere import Cycle, made
from tests.leaving import leave

STEPS = 12


def worker(rank: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save({"train": train(rank), "refuse": refuse(rank)}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
    leave()


def train(rank: int) -> dict[str, Any]:
    """Rank 1 draws with shares that are two versions old."""
    controller, listener = made(4, steps=STEPS, accumulation=2, policy=Cycle(), update_every=2)
    net = nn.Linear(3, 1, bias=False).double()
    nn.init.ones_(net.weight)
    wrapped = DistributedDataParallel(net)
    rng, gradients, told = np.random.default_rng(rank), [], []
    for micro in range(2 * STEPS):
        version = max(0, listener.version - 2 * rank)
        domains = rng.choice(3, size=4, p=listener.shares(version))
        told.append((domains.tolist(), listener.shares(version)[domains].tolist()))
        # Each row's loss is the weight of its domain, so that gradients are sums of factors.
        losses = wrapped(torch.eye(3, dtype=torch.float64)[domains]).squeeze(1)
        draw = controller.foreign(domains, version=version)
        controller.loss(losses, draw=draw).backward()
        if micro % 2:
            gradients.append(net.weight.grad[0].tolist())  # type: ignore[index]
            net.zero_grad()
            controller.step()
    return {
        "gradients": gradients,
        "told": told,
        "objective": controller.weights.objective.tolist(),
        "versions": listener.told,
        "state": controller.state_dict()["checksums"],
        "seen": controller.statistics.seen.tolist(),
    }


def refuse(rank: int) -> str:
    controller, _ = made(4, steps=STEPS + rank, policy=Cycle())
    try:
        controller.loss(torch.ones(4), draw=controller.foreign([0, 1, 2, 0], version=0))
    except ProcessMismatchError as error:
        return str(error)
    return "nothing"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("foreign")
    spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_the_gradient_divides_each_row_by_the_share_of_its_own_process(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (each["train"] for each in ranks)
    assert first["gradients"] == second["gradients"]
    assert first["told"] != second["told"]
    for step in range(STEPS):
        expected = np.zeros(3)
        for each in (first, second):
            for domains, shares in each["told"][2 * step : 2 * step + 2]:
                for domain, share in zip(domains, shares, strict=True):
                    expected[domain] += first["objective"][domain] / share / 16
        np.testing.assert_allclose(first["gradients"][step], expected, rtol=1e-12)


def test_processes_publish_the_same_and_sum_what_both_have_seen(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (each["train"] for each in ranks)
    assert first["versions"] == second["versions"] and len(first["versions"]) > 4
    assert first["state"] == second["state"]
    # As of the last update but one: what a step sends off is read in the next.
    assert sum(first["seen"]) == 16 * (STEPS - 2)


def test_processes_that_expect_other_runs_are_refused(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["refuse"] == ranks[1]["refuse"]
    assert "steps differs between data-parallel ranks" in ranks[0]["refuse"]
