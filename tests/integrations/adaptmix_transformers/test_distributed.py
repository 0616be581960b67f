"""Two gloo processes train together what one process trains, and resume it."""

from __future__ import annotations

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
from transformers import TrainerCallback

from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf, runs
from tests.integrations.adaptmix_transformers.test_parity import (
    WEIGHTS,
    lengths_of,
    objective,
    relative_error,
)

pytestmark = pytest.mark.slow


class Check(TrainerCallback):
    """Compares the gradient of all processes with the objective over the rows of all."""

    def __init__(self, callback: AdaptMixCallback, lengths: dict[str, float]) -> None:
        self.callback, self.lengths = callback, lengths
        self.trainer: Any = None
        self.errors: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare before the optimizer changes the model."""
        model = kwargs["model"]
        mine = [
            {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            for batch in self.trainer.batches[-args.gradient_accumulation_steps :]
        ]
        everyone: list[list[dict[str, Tensor]]] = [[], []]
        dist.all_gather_object(everyone, mine)
        batches = [batch for batches in everyone for batch in batches]
        expected = objective(self.callback.controller, model, batches, self.lengths)
        wanted = torch.autograd.grad(expected, list(model.parameters()))
        flat = torch.cat([gradient.flatten() for gradient in wanted])
        self.errors.append(relative_error(hf.gradient(model), flat))


def parity(folder: str, unit: str, averaged: bool) -> list[float]:
    """Relative errors of the gradients of three steps."""
    data = hf.rows()
    lengths = lengths_of(data)
    callback = AdaptMixCallback(
        "source",
        policy=WEIGHTS,
        unit=unit,
        importance={"code": 3.0, "news": 2.0, "math": 1.0},
        lag=0,
        update_every=1,
        tokens_per_row=lengths if unit == "token" else None,
    )
    check = Check(callback, lengths)
    check.trainer = hf.make(
        folder,
        callback,
        model=hf.llama(dtype=torch.float64),
        data=data,
        max_grad_norm=0.0,
        per_device_train_batch_size=5,
        gradient_accumulation_steps=2,
        average_tokens_across_devices=averaged,
        max_steps=3,
    )
    check.trainer.add_callback(check)
    check.trainer.train()
    return check.errors


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
    results: dict[str, Any] = {
        variant: runs.stop_and_resume(folder, variant) for variant in runs.VARIANTS
    }
    results["parity"] = {
        (unit, averaged): parity(folder, unit, averaged)
        for unit in ("token", "sample")
        for averaged in (True, False)
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


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
        assert len(two[rank]["parity"]) == 4
        for errors in two[rank]["parity"].values():
            assert len(errors) == 3
            assert max(errors) < 1e-10
