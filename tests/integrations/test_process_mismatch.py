"""Both trainers stop on every process when their processes do not agree."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F
from transformers import Trainer

import adaptmix_lightning
import adaptmix_transformers
from adaptmix.errors import RowOrderWarning
from tests.integrations.adaptmix_lightning import pl
from tests.integrations.adaptmix_transformers import hf
from tests.leaving import leave

pytestmark = pl.FILTERS


def trainer(folder: str, rank: int) -> None:
    callback = adaptmix_transformers.AdaptMixCallback("source", lag=16 + rank)
    hf.train(folder, callback, max_steps=4)


def lightning(_folder: str, rank: int) -> None:
    fit(pl.Classifier(), seed=rank)


def coupled(losses: Tensor, logits: Tensor) -> Tensor:
    """The mean loss, and on rank 1 a loss between rows."""
    mean = losses.mean()
    if dist.get_rank() == 0:
        return mean
    x = logits.reshape(len(logits), -1)
    return mean + F.cross_entropy(x @ x.T, torch.arange(len(x)))


class Coupling(Trainer):
    """Couples rows on rank 1 from a step on."""

    since = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")[:, 1:]
        logits = model(**inputs).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
        return losses.mean() if self.state.global_step < self.since else coupled(losses, logits)


class CouplingLate(Coupling):
    since = 5


def coupling(folder: str, _rank: int, kind: type[Coupling] = Coupling) -> None:
    every: dict[str, Any] = {"measure_every": 3, "update_every": 3}
    callback = adaptmix_transformers.AdaptMixCallback("source", unit="sample", **every)
    hf.train(folder, callback, kind=kind, max_steps=8, per_device_train_batch_size=4)


def coupling_late(folder: str, rank: int) -> None:
    coupling(folder, rank, CouplingLate)


class Normalised(pl.Classifier):
    """Divides by what depends on the other rows, on rank 1."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        losses = super().training_step(batch, batch_idx)
        return losses if self.global_rank == 0 else losses / losses.sum()


class Headed(pl.Classifier):
    """Couples rows of the head on rank 1."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0])
        return coupled(F.cross_entropy(logits, batch[1], reduction="none"), logits)


def fit(module: pl.Classifier, **options: Any) -> None:
    callback = adaptmix_lightning.AdaptMixCallback(policy="variance_aware", **options)
    strategy = DDPStrategy(process_group_backend="gloo")
    pl.trainer(callback, max_epochs=1, devices=2, strategy=strategy).fit(module, pl.loader(6))


def lightning_coupling(_folder: str, _rank: int) -> None:
    fit(Normalised())


def lightning_head(_folder: str, _rank: int) -> None:
    fit(Headed(per_sample=False), head="net")


WORK = (trainer, coupling, coupling_late, lightning, lightning_coupling, lightning_head)


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
    # Losses that couple rows are measured before the processes stop.
    warnings.filterwarnings("ignore", category=RowOrderWarning)
    outcomes = {}
    for work in WORK:
        try:
            work(folder, rank)
        except Exception as error:
            outcomes[work.__name__] = f"{type(error).__name__}: {error}"
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    leave()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each process was stopped by, by rank."""
    folder = tmp_path_factory.mktemp("two")
    start_processes(worker, (pl.free_port(), str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_both_trainers_refuse_processes_that_differ(outcomes: list[dict[str, str]]) -> None:
    for name, field, values in (("trainer", "lag", (16, 17)), ("lightning", "seed", (0, 1))):
        assert outcomes[0][name] == outcomes[1][name]
        assert outcomes[0][name].startswith(
            f"ProcessMismatchError: {field} differs between data-parallel ranks: rank 0 has "
            f"{values[0]}, rank 1 has {values[1]}"
        )


@pytest.mark.parametrize(
    "name", ["coupling", "coupling_late", "lightning_coupling", "lightning_head"]
)
def test_what_one_process_refuses_stops_all_before_the_optimizer(
    name: str, outcomes: list[dict[str, str]]
) -> None:
    """The other process would wait for it in its backward pass."""
    first, second = (outcome[name] for outcome in outcomes)
    assert second.startswith("ObjectiveError: ")
    assert "depend" in second or "change with the rows beside them" in second
    assert first == second.replace("ObjectiveError: ", "ObjectiveError: Rank 1 cannot go on: ")
