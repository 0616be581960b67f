"""A run that stops and goes on is the run that did not stop, to the bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing.spawn import start_processes

from adaptmix_lightning import AdaptMixCallback
from tests import runs
from tests.integrations.adaptmix_lightning import pl
from tests.leaving import leave

pytestmark = pl.FILTERS

EPOCHS, STOP = 6, 8
ROWS = 12  # of a batch, over all processes: 73 rows are 7 batches


def run(
    folder: Path,
    *,
    workers: int,
    accumulation: int,
    world: int = 1,
    resume: Path | None = None,
) -> dict[str, Any]:
    """Fit all epochs, saving after every eighth step; or go on from a checkpoint."""
    mixer = AdaptMixCallback(policy="variance_aware", update_every=2, lag=6)
    saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STOP, save_top_k=-1)
    module = pl.Classifier()
    if resume is not None:  # what a resumed run starts from must not matter
        module.net.load_state_dict(runs.model(seed=9).state_dict())
    trainer = pl.trainer(
        mixer,
        saves,
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulation,
        enable_checkpointing=True,
        devices=world,
        strategy=DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
    )
    trainer.fit(module, pl.loader(ROWS // world, num_workers=workers), ckpt_path=resume)
    return {
        "rows": module.rows,
        "parameters": runs.parameters(module.net),
        "weights": mixer.controller.weights.sampling.tolist(),
        "steps": trainer.global_step,
    }


def same(whole: dict[str, Any], resumed: dict[str, Any], accumulation: int) -> None:
    assert whole["steps"] == resumed["steps"] == EPOCHS * -(-7 // accumulation)
    assert len(resumed["rows"]) == (whole["steps"] - STOP) * accumulation > 0
    assert whole["rows"][STOP * accumulation :] == resumed["rows"]
    assert whole["weights"] == resumed["weights"]
    assert torch.equal(whole["parameters"], resumed["parameters"])
    # The distance is 0.10 to 0.16 with ten seeds.
    importance = [size / sum(runs.SIZES) for size in runs.SIZES]
    assert abs(whole["weights"][0] - importance[0]) > 0.05


# Step 8 is in the middle of an epoch of 7 steps; with accumulation 4 epochs have 2 steps, so there
# it is at the end of one. Seven batches do not divide by 4: steps are all of full size.
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_one_process(workers: int, accumulation: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"workers": workers, "accumulation": accumulation}
    whole = run(tmp_path, **options)
    resumed = run(tmp_path / "again", resume=tmp_path / f"step={STOP}.ckpt", **options)
    same(whole, resumed, accumulation)


def worker(rank: int, port: int, folder: str, task: str) -> None:
    """One of two processes, as torchrun would start them."""
    os.environ.update(
        GLOO_SOCKET_IFNAME="lo",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
    )
    torch.set_num_threads(1)
    results = {}
    for workers in (0, 2):
        for accumulation in (1, 4):
            name = f"{workers}-{accumulation}"
            saved = Path(folder) / name
            results[name] = run(
                saved if task == "whole" else saved / "again",
                workers=workers,
                accumulation=accumulation,
                world=2,
                resume=None if task == "whole" else saved / f"step={STOP}.ckpt",
            )
    torch.save(results, f"{folder}/{task}-{rank}.pt")
    torch.distributed.destroy_process_group()
    leave()


Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """Whole runs and resumed ones, by rank; the resumed ones in new processes."""
    for task in ("whole", "resume"):
        # Forked, so that they need not import everything anew.
        args = (pl.free_port(), str(folder), task)
        start_processes(worker, args=args, nprocs=2, start_method="fork")
    return {
        task: [torch.load(folder / f"{task}-{rank}.pt") for rank in range(2)]
        for task in ("whole", "resume")
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_processes(workers: int, accumulation: int, results: Results) -> None:
    name = f"{workers}-{accumulation}"
    for rank in range(2):
        whole, resumed = (results[task][rank][name] for task in ("whole", "resume"))
        same(whole, resumed, accumulation)
    first, second = (results["whole"][rank][name] for rank in range(2))
    assert first["weights"] == second["weights"]
    assert torch.equal(first["parameters"], second["parameters"])


@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_processes_are_one_with_the_same_global_batch(
    accumulation: int, results: Results, folder: Path, tmp_path: Path
) -> None:
    name = f"0-{accumulation}"
    first, second = (results["whole"][rank][name] for rank in range(2))
    one = run(tmp_path, workers=0, accumulation=accumulation)
    together = [a + b for a, b in zip(first["rows"], second["rows"], strict=True)]
    assert together == one["rows"]
    torch.testing.assert_close(first["parameters"], one["parameters"], rtol=1e-10, atol=1e-12)
    # Their checkpoint goes on on one process.
    checkpoint = folder / name / f"step={STOP}.ckpt"
    alone = run(tmp_path / "a", workers=0, accumulation=accumulation, resume=checkpoint)
    assert one["rows"][STOP * accumulation :] == alone["rows"]
    torch.testing.assert_close(alone["parameters"], one["parameters"], rtol=1e-10, atol=1e-12)
