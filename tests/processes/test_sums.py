"""Two real processes see together what one process sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from adaptmix import Controller
from adaptmix.state._checkpoint import load, save
from tests import runs
from tests.leaving import leave

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")

STEPS, STOP = 30, 13


def make(world_size: int, net: torch.nn.Module) -> runs.Run:
    """A run whose global batch is 2 × 12 rows on any number of processes."""
    controller = Controller(runs.mixture(), policy="joint", update_every=5, measure_every=1, lag=4)
    controller.watch(net)
    wrap = DistributedDataParallel if world_size > 1 else (lambda plain: plain)
    return runs.Run(
        controller, net, batch_size=12 // world_size, accumulation=2, steps=STEPS, wrap=wrap
    )


def worker(rank: int, world_size: int, folder: str, tasks: tuple[str, ...]) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    address = f"file://{folder}/store-{tasks[0]}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    try:
        for task in tasks:
            run = make(world_size, runs.model(seed=9 if task == "resume" else 0))
            if task == "resume":
                run.load_state_dict(load(f"{folder}/stopped.pt"))
            run.train(STOP if task == "stop" else None)
            state = run.state_dict()
            if task == "stop" and rank == 0:
                save(state, f"{folder}/stopped.pt")
            torch.save(result(run), f"{folder}/{task}-{rank}.pt")
    finally:
        dist.destroy_process_group()
    leave()


def result(run: runs.Run) -> dict[str, Any]:
    return {
        "rows": run.rows,
        "weights": run.weights,
        "parameters": runs.parameters(run.net),
        "seen": run.controller.statistics.seen.tolist(),
    }


Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """A whole run and a stopped one, by task and rank; the resumed one in new processes."""
    spawn(worker, args=(2, str(folder), ("whole", "stop")), nprocs=2)
    spawn(worker, args=(2, str(folder), ("resume",)), nprocs=2)
    return {
        task: [torch.load(folder / f"{task}-{rank}.pt") for rank in range(2)]
        for task in ("whole", "stop", "resume")
    }


def test_two_processes_are_one_with_the_same_global_batch(results: Results) -> None:
    whole = results["whole"]
    one = result(make(1, runs.model()).train())
    together = [a + b for a, b in zip(whole[0]["rows"], whole[1]["rows"], strict=True)]
    assert together == one["rows"]
    np.testing.assert_allclose(whole[0]["weights"], one["weights"], rtol=1e-10)
    torch.testing.assert_close(whole[0]["parameters"], one["parameters"], rtol=1e-10, atol=1e-12)
    assert whole[0]["seen"] == one["seen"]


def test_all_processes_agree_to_the_bit(results: Results) -> None:
    whole = results["whole"]
    assert whole[0]["weights"] == whole[1]["weights"]
    assert len({tuple(weights) for weights in whole[0]["weights"]}) > 3
    assert torch.equal(whole[0]["parameters"], whole[1]["parameters"])


def test_stop_and_resume_on_two_processes(folder: Path, results: Results) -> None:
    whole, stopped, resumed = (results[task] for task in ("whole", "stop", "resume"))
    for rank in range(2):
        assert stopped[rank]["rows"] + resumed[rank]["rows"] == whole[rank]["rows"]
        assert stopped[rank]["weights"] + resumed[rank]["weights"] == whole[rank]["weights"]
        assert torch.equal(resumed[rank]["parameters"], whole[rank]["parameters"])
    # The same checkpoint on one process: other slices of the same rows, sums in another order.
    alone = make(1, runs.model(seed=9))
    alone.load_state_dict(load(folder / "stopped.pt"))
    alone.train()
    rows = [a + b for a, b in zip(resumed[0]["rows"], resumed[1]["rows"], strict=True)]
    assert alone.rows == rows
    np.testing.assert_allclose(alone.weights, resumed[0]["weights"], rtol=1e-10)
