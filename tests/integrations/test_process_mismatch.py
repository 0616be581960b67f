"""Both trainers stop on every process when their processes do not agree."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing.spawn import start_processes

import adaptmix_lightning
import adaptmix_transformers
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_transformers import hf
from tests.leaving import leave

pytestmark = pl.FILTERS


def trainer(folder: str, rank: int) -> None:
    callback = adaptmix_transformers.AdaptMixCallback("source", lag=16 + rank)
    hf.train(folder, callback, max_steps=4)


def lightning(_folder: str, rank: int) -> None:
    callback = adaptmix_lightning.AdaptMixCallback(policy="variance_aware", seed=rank)
    pl.trainer(
        callback, max_epochs=1, devices=2, strategy=DDPStrategy(process_group_backend="gloo")
    ).fit(pl.Classifier(), pl.loader(6))


def worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    outcomes = {}
    for work in (trainer, lightning):
        try:
            work(folder, rank)
        except Exception as error:
            outcomes[work.__name__] = f"{type(error).__name__}: {error}"
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    leave()


def test_both_trainers(tmp_path: Path) -> None:
    start_processes(worker, (pl.free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    outcomes: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["trainer"].startswith(
        "ProcessMismatchError: lag differs between data-parallel ranks: rank 0 has 16, rank 1 has"
    )
    assert outcomes[0]["lightning"].startswith(
        "ProcessMismatchError: seed differs between data-parallel ranks: rank 0 has 0, rank 1 has"
    )
