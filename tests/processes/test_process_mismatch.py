"""Processes that do not agree all stop with one sentence; none trains on, none is left waiting.

Also tests ``processes/_agreement.py`` and ``processes/_tensor_parallel.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from adaptmix import Controller
from tests import runs
from tests.leaving import leave
from tests.processes.mismatches import BUILT, DONE, PATIENCE, WELL, built

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")


def worker(rank: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    early = Controller(runs.mixture(), policy="static")
    early_loader = early.loader(6, steps=4)
    address = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=PATIENCE)
    late = Controller(runs.mixture(), policy="static")
    late_loader = late.loader(6, steps=4)

    def made_early(rank: int, of: int) -> None:
        controller, loader = (early, early_loader) if rank >= of else (late, late_loader)
        for _, draw in loader.with_draws():
            controller.loss(torch.ones(6, requires_grad=True), draw=draw).backward()
            controller.step()

    outcomes: dict[str, Any] = {}
    tasks: dict[str, Callable[[int], Any]] = {
        "a loader made early by one": lambda rank: made_early(rank, 1),
        "a loader made early by all": lambda rank: made_early(rank, 0),
        **{name: partial(built, name) for name in BUILT},
        **{name: work for name, (work, _) in DONE.items()},
        **WELL,
    }
    try:
        for name, work in tasks.items():
            try:
                outcomes[name] = work(rank)
            except Exception as error:
                outcomes[name] = f"{type(error).__name__}: {error}"
                if not isinstance(error, ValueError):
                    break  # what hangs leaves the processes out of step
    finally:
        torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    leave()


Outcomes = list[dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("mismatch")
    spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", BUILT)
def test_what_processes_are_built_with(name: str, outcomes: Outcomes) -> None:
    first, second = (outcome[name] for outcome in outcomes)
    field = BUILT[name][2]
    assert first == second
    assert first.startswith(f"ProcessMismatchError: {field}")
    assert "differs between data-parallel ranks: rank 0 has " in first
    assert ", rank 1 has " in first


def test_the_message_has_both_values(outcomes: Outcomes) -> None:
    assert outcomes[0]["lag"].startswith(
        "ProcessMismatchError: lag differs between data-parallel ranks: rank 0 has 4, rank 1 has "
        "8. Build the controller, its loader and its pins with the same arguments"
    )


@pytest.mark.parametrize("name", DONE)
def test_what_processes_do(name: str, outcomes: Outcomes) -> None:
    first, second = (outcome[name] for outcome in outcomes)
    assert first == second
    assert first.startswith(f"ProcessMismatchError: {DONE[name][1]}")


@pytest.mark.parametrize(("who", "rank"), [("one", 1), ("all", 0)])
def test_a_loader_made_before_the_process_group(who: str, rank: int, outcomes: Outcomes) -> None:
    first, second = (outcome[f"a loader made early by {who}"] for outcome in outcomes)
    assert first == second
    assert first.startswith(
        f"ProcessMismatchError: Rank {rank} cannot go on: the loader was made as rank 0 of 1 "
        f"processes, and this is rank {rank} of 2. Make the loader after torch.distributed.init"
    )


def test_what_only_one_process_is_told_counts_for_all(outcomes: Outcomes) -> None:
    first, second = (outcome["noise_by_one"] for outcome in outcomes)
    assert first == second
    assert all(value == value for value in first[1])
    first, second = (outcome["losses_by_one"] for outcome in outcomes)
    assert first == second
    assert all(value == value for value in first[1])


def test_a_pin_of_all_counts_from_the_next_update_on(outcomes: Outcomes) -> None:
    first, second = (outcome["pinned_by_all"] for outcome in outcomes)
    assert first == second == [1.0] * 5 + [0.5] * 4


def test_ranks_that_share_layers_see_the_same_rows(outcomes: Outcomes) -> None:
    first, second = (outcome["tensor_parallel"] for outcome in outcomes)
    assert first == second
    assert first[1] == 8 * 6  # rows of the group's one process, up to the last update


def test_no_process_was_left_waiting(outcomes: Outcomes) -> None:
    assert all(len(outcome) == 2 + len(BUILT) + len(DONE) + len(WELL) for outcome in outcomes)


def test_one_process_agrees_with_itself() -> None:
    controller = Controller(runs.mixture(), policy="static")
    runs.Run(controller, runs.model(), steps=3).train()
    assert controller.completed == 3
