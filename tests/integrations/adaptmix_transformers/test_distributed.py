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

from adaptmix import policies
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.test_parity import (
    WEIGHTS,
    lengths_of,
    objective,
    relative_error,
)

VARIANTS = {
    f"{workers}-{accumulation}-{epochs}": (workers, accumulation, epochs)
    for workers in (0, 2)
    for accumulation in (1, 4)
    for epochs in (1, 3)
}


def adapting() -> AdaptMixCallback:
    return AdaptMixCallback("source", policy=policies.VarianceAware(), update_every=2, lag=4)


def options(variant: str, processes: int) -> dict[str, Any]:
    """80 or 240 rows in batches of 6 over all processes: epochs do not divide by accumulation."""
    workers, accumulation, epochs = VARIANTS[variant]
    times = 1 if epochs == 3 else 3
    return {
        "data": hf.rows({name: times * size for name, size in hf.SIZES.items()}),
        "num_train_epochs": epochs,
        "max_steps": -1,
        "per_device_train_batch_size": 6 // processes,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "save_strategy": "steps",
        "save_steps": 7,
        "eval_strategy": "epoch",
        "trainer_options": {"eval_dataset": hf.rows({"code": 5, "news": 4, "math": 4}, seed=1)},
    }


def result(trainer: Any, callback: AdaptMixCallback) -> dict[str, Any]:
    evaluated = {
        name: value
        for entry in trainer.state.log_history
        for name, value in entry.items()
        if name.startswith("eval_loss")
    }
    return {
        "rows": hf.trained_rows(trainer),
        "parameters": hf.parameters(trainer.model),
        "weights": callback.controller.weights.sampling,
        "evaluated": evaluated,
        "steps": trainer.state.global_step,
    }


def resume(folder: str, variant: str) -> dict[str, dict[str, Any]]:
    """A whole run, and one that goes on at its seventh step."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    results = {}
    for name, seed in (("whole", 0), ("resumed", 9)):
        callback = adapting()
        trainer = hf.train(
            f"{folder}/{variant}-{name}",
            callback,
            model=hf.llama(seed),
            resume=f"{folder}/{variant}-whole/checkpoint-7" if name == "resumed" else None,
            **options(variant, processes),
        )
        results[name] = result(trainer, callback)
    return results


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
    results: dict[str, Any] = {variant: resume(folder, variant) for variant in VARIANTS}
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_stop_and_resume_on_two_processes_is_bit_identical(
    variant: str, two: list[dict[str, Any]]
) -> None:
    _, accumulation, epochs = VARIANTS[variant]
    for rank in range(2):
        whole, resumed = two[rank][variant]["whole"], two[rank][variant]["resumed"]
        assert whole["steps"] == resumed["steps"]
        assert whole["rows"][7 * accumulation :] == resumed["rows"]
        assert torch.equal(whole["parameters"], resumed["parameters"])
        np.testing.assert_array_equal(whole["weights"], resumed["weights"])
    first, second = (two[rank][variant]["whole"] for rank in range(2))
    assert torch.equal(first["parameters"], second["parameters"])
    assert first["rows"] != second["rows"]
    assert len(first["rows"]) == first["steps"] * accumulation


def test_two_processes_are_one_with_the_same_global_batch(
    two: list[dict[str, Any]], tmp_path: Path
) -> None:
    variant = "0-4-3"
    together, alone = two[0][variant]["whole"], resume(str(tmp_path), variant)["whole"]
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
    assert together["evaluated"] == pytest.approx(alone["evaluated"], rel=1e-3)
    assert {"eval_loss_code", "eval_loss_weighted"} <= set(alone["evaluated"])


def test_the_gradient_of_two_processes_is_that_of_the_objective(two: list[dict[str, Any]]) -> None:
    for rank in range(2):
        assert len(two[rank]["parity"]) == 4
        for errors in two[rank]["parity"].values():
            assert len(errors) == 3
            assert max(errors) < 1e-10
