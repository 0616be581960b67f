"""Fabric and Accelerate with the plain controller are the plain loop, also stopped and resumed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F
from torch.utils.data import DataLoader

from adaptmix import Controller
from adaptmix.data import Loader, NumberedRows, PlanSampler
from adaptmix.errors import ObjectiveError
from tests import runs
from tests.integrations.adaptmix_lightning.pl import FILTERS, free_port
from tests.leaving import leave

pytestmark = [
    *FILTERS,
    pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning"),
    pytest.mark.filterwarnings("ignore:`?torch.distributed.reduce_op"),
]

STEPS, STOP, ROWS = 14, 6, 16
Result = dict[str, Any]


def make_controller(net: nn.Module, **options: Any) -> Controller:
    controller = Controller(
        runs.mixture(), policy="variance_aware", update_every=2, lag=4, **options
    )
    controller.watch(net)
    return controller


def fit(
    framework: str,
    folder: Path,
    *,
    accumulation: int,
    world: int = 1,
    workers: int = 0,
    resume: bool = False,
    stop: int | None = None,
    divide: bool = False,
    precision: str | None = None,
) -> Result:
    """Train as the examples do, and save after ``stop`` steps."""
    net = runs.model(seed=9 if resume else 0)
    net = net if precision is None else net.float()
    optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    controller = make_controller(net)
    if framework == "fabric":
        strategy = DDPStrategy(process_group_backend="gloo") if world > 1 else "auto"
        fabric = Fabric(
            accelerator="cpu",
            devices=world,
            strategy=strategy,
            precision=f"{precision}-mixed" if precision else "32-true",  # type: ignore[arg-type]
        )
        fabric.launch()
        model, optimizer = fabric.setup(net, optimizer)
        state = {"model": model, "optimizer": optimizer, "controller": controller}
        if resume:
            fabric.load(folder / "fabric.ckpt", state)
    else:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=accumulation, mixed_precision=precision
        )
        model, optimizer = accelerator.prepare(net, optimizer)
        accelerator.register_for_checkpointing(controller)
        if resume:
            accelerator.load_state(str(folder / "accelerate"))

    @contextlib.contextmanager
    def accumulating(unfinished: bool) -> Iterator[None]:
        context = (
            fabric.no_backward_sync(model, enabled=unfinished)
            if framework == "fabric"
            else accelerator.accumulate(model)
        )
        with context:
            yield

    def backward(loss: Tensor) -> None:
        if framework == "fabric":
            fabric.backward(loss)
        else:
            accelerator.backward(loss if divide else loss * accumulation)

    rows = []
    loader = controller.loader(
        ROWS // world // accumulation, accumulation=accumulation, steps=STEPS, num_workers=workers
    )
    for (inputs, targets, _), draw in loader.with_draws():
        unfinished = (draw.ordinal + 1) % accumulation != 0
        with accumulating(unfinished):
            logits = model(inputs.to(next(net.parameters()).dtype))
            losses = F.cross_entropy(logits, targets, reduction="none")
            backward(controller.loss(losses, draw=draw))
            if framework == "accelerate" or not unfinished:
                optimizer.step()
                optimizer.zero_grad()
        rows.append(draw.rows.tolist())
        if unfinished:
            continue
        controller.step()
        if controller.completed == stop:
            if framework == "fabric":
                fabric.save(folder / "fabric.ckpt", state)
            else:
                accelerator.save_state(str(folder / "accelerate"))
            break
    return {
        "rows": rows,
        "parameters": runs.parameters(net),
        "weights": controller.weights.sampling.tolist(),
    }


def plain(accumulation: int) -> Result:
    """The loop that tests/test_parity.py holds against the written-out objective."""
    net = runs.model()
    run = runs.Run(
        make_controller(net),
        net,
        batch_size=ROWS // accumulation,
        accumulation=accumulation,
        steps=STEPS,
        with_noise=False,
    ).train()
    weights = run.controller.weights.sampling.tolist()
    return {"rows": run.rows, "parameters": runs.parameters(net), "weights": weights}


FRAMEWORKS = pytest.mark.parametrize("framework", ["fabric", "accelerate"])
ACCUMULATION = pytest.mark.parametrize("accumulation", [1, 4])
WORKERS = pytest.mark.parametrize("workers", [0, 2])


@FRAMEWORKS
@ACCUMULATION
@WORKERS
def test_one_process(framework: str, accumulation: int, workers: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulation": accumulation, "workers": workers}
    expected = plain(accumulation)
    whole = fit(framework, tmp_path, **options)
    stopped = fit(framework, tmp_path, stop=STOP, **options)
    resumed = fit(framework, tmp_path, resume=True, **options)
    assert stopped["rows"] + resumed["rows"] == whole["rows"] == expected["rows"]
    assert resumed["weights"] == whole["weights"] == expected["weights"]
    assert torch.equal(resumed["parameters"], whole["parameters"])
    torch.testing.assert_close(whole["parameters"], expected["parameters"], rtol=1e-12, atol=1e-14)
    assert max(expected["weights"]) != pytest.approx(max(runs.SIZES) / sum(runs.SIZES), abs=0.01)


def worker(rank: int, port: int, folder: str) -> None:
    """One of two processes, as torchrun would start them."""
    os.environ.update(
        GLOO_SOCKET_IFNAME="lo",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
        WORLD_SIZE="2",
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    results: dict[Any, Any] = {}
    for framework, accumulation, workers in product(("fabric", "accelerate"), (1, 4), (0, 2)):
        for task in ("whole", "stop", "resume"):
            results[framework, accumulation, workers, task] = fit(
                framework,
                Path(folder) / f"{accumulation}-{workers}",
                accumulation=accumulation,
                workers=workers,
                world=2,
                resume=task == "resume",
                stop=STOP if task == "stop" else None,
            )
    results["sharded again"] = sharded_again()
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    leave()


def sharded_again() -> dict[str, str]:
    """What becomes of loaders that a framework may shard once more, two batches trained of each."""
    strategy = DDPStrategy(process_group_backend="gloo")
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    accelerator, uneven = Accelerator(cpu=True), Accelerator(cpu=True)
    uneven.even_batches = False
    told = partial(fabric.setup_dataloaders, use_distributed_sampler=False)
    prepare: dict[str, Callable[[Any], Any]] = {
        "fabric": fabric.setup_dataloaders,
        "fabric, told": told,
        "accelerate": accelerator.prepare,
        "accelerate, uneven": uneven.prepare,
        "accelerate, ours": accelerator.prepare,
    }
    said = {}
    for name, prepared in prepare.items():
        controller = Controller(runs.mixture(), policy="static")
        sampler = controller.sampler(6, steps=STEPS)
        rows = NumberedRows(controller.mixture)
        own: Any = DataLoader(rows, batch_sampler=sampler, collate_fn=list)
        loader = controller.loader(6, steps=STEPS) if "ours" in name else own
        try:
            said[name] = train_two(prepared(loader), sampler, controller)
        except (TypeError, ValueError) as error:
            said[name] = str(error)
    return said


def train_two(batches: Any, sampler: PlanSampler, controller: Controller) -> str:
    pairs = batches.with_draws() if isinstance(batches, Loader) else batches
    for _, (_, draw) in zip(range(2), pairs, strict=False):
        draw = sampler.take(draw) if isinstance(draw, int) else draw
        losses = torch.ones(len(draw), requires_grad=True)
        controller.loss(losses, draw=draw).backward()
        controller.step()
    return "trained"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("two")
    start_processes(worker, args=(free_port(), str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@FRAMEWORKS
@ACCUMULATION
@WORKERS
def test_two_processes(
    framework: str, accumulation: int, workers: int, results: list[dict[Any, Any]]
) -> None:
    expected = plain(accumulation)
    whole, stopped, resumed = (
        [result[framework, accumulation, workers, task] for result in results]
        for task in ("whole", "stop", "resume")
    )
    together = [a + b for a, b in zip(whole[0]["rows"], whole[1]["rows"], strict=True)]
    assert together == expected["rows"]
    torch.testing.assert_close(
        whole[0]["parameters"], expected["parameters"], rtol=1e-10, atol=1e-12
    )
    for rank in range(2):
        assert stopped[rank]["rows"] + resumed[rank]["rows"] == whole[rank]["rows"]
        assert torch.equal(resumed[rank]["parameters"], whole[rank]["parameters"])
        assert resumed[rank]["weights"] == whole[rank]["weights"] == whole[0]["weights"]


def test_sharding_again_is_refused_with_the_setting_that_helps(
    results: list[dict[Any, Any]],
) -> None:
    for result in results:
        said = result["sharded again"]
        assert "use_distributed_sampler=False" in said["fabric"]
        for name in ("accelerate", "accelerate, uneven"):
            assert "keep a loader out of Accelerator.prepare" in said[name]
        for name in ("fabric, told", "accelerate, ours"):
            assert said[name] == "trained"


@FRAMEWORKS
def test_mixed_precision(framework: str, tmp_path: Path) -> None:
    low = fit(framework, tmp_path, accumulation=4, precision="bf16")
    assert low["rows"][: 3 * 4] == plain(4)["rows"][: 3 * 4]
    torch.testing.assert_close(
        low["parameters"].double(), plain(4)["parameters"], rtol=0.1, atol=0.05
    )


def test_a_loss_that_accelerate_divides_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match=r"accumulation of 4.*already; got 0.25"):
        fit("accelerate", tmp_path, accumulation=4, divide=True)


def test_a_loader_is_left_alone() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    loader = make_controller(runs.model()).loader(12, steps=2)
    assert Accelerator(cpu=True).prepare(loader) is loader
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(TypeError, match="Only PyTorch DataLoader"):
        fabric.setup_dataloaders(loader)
