"""Two gloo processes train together what one process trains, and resume it.

Also tests ``adaptmix_transformers/_checkpoints.py``.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from tests.integrations.adaptmix_transformers import hf, runs
from tests.integrations.adaptmix_transformers.test_parity import gradient_errors
from tests.leaving import leave

pytestmark = pytest.mark.slow
ACCUMULATIONS = (1, 4)
MATRIX = ("plain", "LoRA", "padding-free", "packed", "flattened", "DPO", "reward")


def everyones(mine: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The micro-batches of both processes."""
    gathered: list[list[dict[str, Tensor]]] = [[], []]
    dist.all_gather_object(gathered, mine)
    return [batch for batches in gathered for batch in batches]


def on_cpu(storage: Any, location: str) -> Any:
    return storage if location.startswith("cpu:") else None


def worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    torch.set_num_threads(1)
    # As under torchrun. Workers inherit the way this process was started in, and would each spend
    # seconds on imports.
    multiprocessing.set_start_method("fork", force=True)
    # Older releases of transformers load onto "cpu:0" on several processes, which torch cannot.
    torch.serialization.register_package(9, lambda _: None, on_cpu)
    results: dict[str, Any] = {
        variant: runs.stop_and_resume(folder, variant) for variant in runs.VARIANTS
    }
    results["parity"] = {
        (unit, averaged, grouped, accumulation): gradient_errors(
            folder,
            unit,
            rows=10,
            accumulation=accumulation,
            gather=everyones,
            average_tokens_across_devices=averaged,
            max_steps=3,
            **(hf.GROUPED if grouped else {}),
        )
        for unit in ("token", "sample")
        for averaged, grouped, accumulation in (
            *((True, False, 1), (True, False, 2), (True, True, 2)),
            *((False, False, 1), (False, False, 2)),
        )
    }
    if importlib.util.find_spec("trl"):  # it does not support the oldest transformers
        here = "tests.integrations.adaptmix_transformers"
        grpo, matrix = (importlib.import_module(f"{here}.{n}") for n in ("grpo_runs", "trl_matrix"))
        results["grpo"] = grpo.stop_and_go_on(folder, 4, 2)
        results["trl"] = {
            (name, policy, accumulation): matrix.stop_and_go_on(
                folder, name, policy, accumulation, 2
            )
            for name in matrix.SETUPS
            for policy in matrix.POLICIES
            for accumulation in ACCUMULATIONS
        }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    leave()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes did, by rank."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("variant", runs.VARIANTS)
def test_stop_and_resume_on_two_processes_is_bit_identical(
    variant: str, two: list[dict[str, Any]]
) -> None:
    for rank in range(2):
        runs.check_resumed(variant, **two[rank][variant])
    first, second = (two[rank][variant]["whole"] for rank in range(2))
    assert torch.equal(first["parameters"], second["parameters"])
    assert first["rows"] != second["rows"]


def test_two_processes_are_one_with_the_same_global_batch(
    two: list[dict[str, Any]], tmp_path: Path
) -> None:
    variant = "0-4-2"
    together, alone = (
        two[0][variant]["whole"],
        runs.stop_and_resume(str(tmp_path), variant)["whole"],
    )
    for mine, theirs, both in zip(
        two[0][variant]["whole"]["rows"],
        two[1][variant]["whole"]["rows"],
        alone["rows"],
        strict=True,
    ):
        # Each process pads to its own longest row.
        unpadded = [[token for token in row if token] for row in (*mine, *theirs)]
        assert unpadded == [[token for token in row if token] for row in both]
    np.testing.assert_allclose(together["weights"], alone["weights"], rtol=1e-4)
    torch.testing.assert_close(together["parameters"], alone["parameters"], rtol=1e-3, atol=1e-4)
    # The trainer's own eval_loss is a mean over batches, which are others on two processes.
    del together["evaluated"]["eval_loss"], alone["evaluated"]["eval_loss"]
    assert together["evaluated"] == pytest.approx(alone["evaluated"], rel=1e-3)
    assert {"eval_loss_code", "eval_weighted_loss"} <= set(alone["evaluated"])


def test_the_gradient_of_two_processes_is_that_of_the_objective(two: list[dict[str, Any]]) -> None:
    for rank in range(2):
        assert len(two[rank]["parity"]) == 10
        for errors in two[rank]["parity"].values():
            assert len(errors) == 3
            assert max(errors) < 1e-10


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("policy", ["variance_aware", "joint"])
@pytest.mark.parametrize("name", MATRIX)
def test_trl_trains_the_objective_stops_and_goes_on_however_its_batch_is_cut(
    name: str, policy: str, two: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The same on one process and two, in one micro-batch and four."""
    pytest.importorskip("trl")
    from tests.integrations.adaptmix_transformers import trl_matrix

    wanted: dict[str, Any] | None = None
    for accumulation in ACCUMULATIONS:
        alone = trl_matrix.stop_and_go_on(tmp_path, name, policy, accumulation, 1)
        wanted = wanted or alone
        for other in (alone, *(two[rank]["trl"][name, policy, accumulation] for rank in range(2))):
            for key, value in wanted.items():
                np.testing.assert_allclose(other[key], value, rtol=2e-3, atol=1e-5, err_msg=key)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_grpo_stops_goes_on_and_trains_alike_on_one_process_and_two(
    two: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Also with another accumulation of the same global batch."""
    pytest.importorskip("trl")
    from tests.integrations.adaptmix_transformers import grpo_runs

    for key, value in grpo_runs.stop_and_go_on(tmp_path, 1, 1).items():
        for rank in range(2):
            np.testing.assert_allclose(
                two[rank]["grpo"][key], value, rtol=2e-3, atol=1e-5, err_msg=key
            )
