"""Runs that stop and go on, in one process or two."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf

# Workers, accumulation, epochs.
VARIANTS = {
    f"{workers}-{accumulation}-{epochs}": (workers, accumulation, epochs)
    for workers in (0, 2)
    for accumulation in (1, 4)
    for epochs in (1, 2)
}
VARIANTS["grouped"] = (0, 4, 2)  # by length, too
VARIANTS["transfer"] = (0, 1, 2)  # one domain counts; rows are held out
VARIANTS["defaults"] = (2, 1, 2)  # nothing said but the column; two epochs of 20 steps
STOP = {1: 9, 4: 3}  # by accumulation; in the second epoch, if there is one
SIZES = {"code": 18, "news": 12, "math": 10}


def stop_of(variant: str) -> int:
    """The optimizer steps after which a run is stopped."""
    return 30 if variant == "defaults" else STOP[VARIANTS[variant][1]]


def make_callback(variant: str) -> AdaptMixCallback:
    """One that adapts in these few steps, or as it comes."""
    if variant == "defaults":
        return AdaptMixCallback("source")
    if variant == "transfer":
        importance = {"code": 0.0, "news": 1.0, "math": 0.0}
        return AdaptMixCallback(
            "source", policy="transfer", importance=importance, holdout=0.25, update_every=1, lag=4
        )
    lag = 4 // VARIANTS[variant][1]
    return AdaptMixCallback("source", policy=hf.Moving(), update_every=1, lag=lag)


def options(variant: str, processes: int) -> dict[str, Any]:
    """40 or 80 rows, six a micro-batch on all processes: 7 or 14, and neither divides by 4.

    With the defaults 480 rows, 24 a batch, so that there is something to see after 40 steps.
    """
    workers, accumulation, epochs = VARIANTS[variant]
    times, rows = (12, 24) if variant == "defaults" else (2 // epochs, 6)
    return {
        "data": hf.rows(
            {name: times * size for name, size in SIZES.items()},
            plain=variant == "defaults",  # far enough from the others for shrinkage, too
        ),
        "num_train_epochs": epochs,
        "max_steps": -1,
        "per_device_train_batch_size": rows // processes,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "save_strategy": "steps",
        "save_steps": stop_of(variant),
        "eval_strategy": "epoch" if variant == "0-4-2" else "no",
        "trainer_options": {"eval_dataset": hf.rows({"code": 5, "news": 4, "math": 4}, seed=1)},
        **(hf.GROUPED if variant == "grouped" else {}),
    }


def result(trainer: Any, callback: AdaptMixCallback) -> dict[str, Any]:
    """All that must not differ."""
    evaluated = {
        name: value
        for entry in trainer.state.log_history
        for name, value in entry.items()
        if name.startswith("eval_") and name.count("loss")
    }
    weights = callback.controller.weights.sampling
    return {
        "rows": hf.trained_rows(trainer),
        "parameters": hf.parameters(trainer.model),
        "weights": weights,
        "moved": float(np.abs(weights - callback.controller.mixture.importance).max()),
        "evaluated": evaluated,
        "steps": trainer.state.global_step,
        "epoch": trainer.state.epoch,
    }


def stop_and_resume(folder: str, variant: str) -> dict[str, dict[str, Any]]:
    """A whole run, and one with another model that goes on from its first checkpoint."""
    results = {}
    settings = options(variant, int(os.environ.get("WORLD_SIZE", "1")))
    for name, seed in (("whole", 0), ("resumed", 9)):
        callback = make_callback(variant)
        trainer = hf.train(
            f"{folder}/{variant}-{name}",
            callback,
            model=hf.llama(seed),
            resume=(
                f"{folder}/{variant}-whole/checkpoint-{settings['save_steps']}"
                if name == "resumed"
                else None
            ),
            **settings,
        )
        results[name] = result(trainer, callback)
    return results


def check_resumed(variant: str, whole: dict[str, Any], resumed: dict[str, Any]) -> None:
    """Assert that the second run is the rest of the first, to the bit."""
    _, accumulation, epochs = VARIANTS[variant]
    stop = stop_of(variant)
    micro_batches = 20 if variant == "defaults" else {1: 14, 2: 7}[epochs]
    steps = epochs * -(-micro_batches // accumulation)
    assert whole["steps"] == resumed["steps"] == steps
    assert whole["epoch"] == resumed["epoch"] == epochs
    assert len(whole["rows"]) == steps * accumulation
    assert whole["rows"][stop * accumulation :] == resumed["rows"]
    assert torch.equal(whole["parameters"], resumed["parameters"])
    np.testing.assert_array_equal(whole["weights"], resumed["weights"])
    assert whole["moved"] > 1e-4  # so that there is something to go on with
