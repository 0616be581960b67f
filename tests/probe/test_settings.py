"""The probe's sums are right under what real training loops add to a step.

Also tests ``probe/_compiled.py``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from adaptmix.errors import ObjectiveError
from adaptmix.probe._probe import GradientProbe
from adaptmix.probe.estimators import _sketch as sketch
from adaptmix.processes._sums import sum_over_ranks
from tests.leaving import leave
from tests.probe.cases import (
    CASES,
    DOMAINS,
    FACTORS,
    B,
    K,
    Stack,
    assert_same,
    attached,
    losses,
    mlp,
    observe,
    reference,
    transformer,
)
from tests.probe.unusual import Functional

# Mixed precision.


@pytest.mark.parametrize("scale", [2.0**10, 2.0**16])
def test_the_scale_of_mixed_precision_is_divided_out(estimator: str, scale: float) -> None:
    model, (inputs, targets) = transformer(), CASES["transformer"][1]()
    probe = attached(model, estimator)
    want = reference(probe, model, inputs, targets)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    factors = torch.full((B,), 1.0 / B)
    probe.arm(True, step=0)
    with torch.autocast("cpu", torch.float16):
        loss = (factors * losses(model(inputs).float(), targets)).sum()
        probe.expect(DOMAINS, factors, loss)
    scaler.scale(loss).backward()
    got = probe.collect()
    assert got is not None
    torch.testing.assert_close(got.square, want.square, rtol=0.02, atol=0.0)


def test_a_step_that_overflows_is_left_out_and_counted(estimator: str) -> None:
    """The scaler skips such a step too, and some in which only the sum over samples overflows."""
    model, (inputs, targets) = transformer(), CASES["transformer"][1]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    probe = attached(model, estimator)
    skipped, counted = [], []
    for step in range(30):
        probe.arm(True, step=step)
        with torch.autocast("cpu", torch.float16):
            loss = losses(model(inputs), targets).mean()
            probe.expect(DOMAINS, torch.full((B,), 1.0 / B), loss)
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        got = probe.collect()
        assert got is not None
        assert all(tensor.isfinite().all() for tensor in got.tensors())
        skipped.append(scaler.get_scale() < before)
        counted.append(float(got.count.sum()))
        assert float(got.skipped) == B - counted[-1]
    assert 0 < sum(skipped) < 30
    assert counted[0] == 0.0
    assert all(count == B for count, skip in zip(counted, skipped, strict=True) if not skip)


# Compiled models.


def whole(model: Stack) -> nn.Module:
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert isinstance(compiled, nn.Module)
    return compiled


def blocks(model: Stack) -> nn.Module:
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    return model


def called_before(model: Stack) -> nn.Module:
    compiled = whole(model)
    compiled(CASES["transformer"][1]()[0])
    return compiled


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("compiled", [whole, blocks, called_before])
def test_compiled_models_run_uncompiled_in_observed_steps_only(
    compiled: Callable[[Stack], nn.Module], estimator: str
) -> None:
    """``fullgraph`` makes any graph break of an unobserved step an error."""
    torch.compiler.reset()
    model, (inputs, targets) = transformer().double(), CASES["transformer"][1]()
    run = compiled(model)
    probe = GradientProbe(run, K, estimator=estimator, seed=3)
    probe.attach()
    for step in range(4):
        probe.arm(step % 2 == 1, step=0)
        loss = FACTORS @ losses(run(inputs), targets)
        probe.expect(DOMAINS, FACTORS, loss)
        loss.backward()
        got = probe.collect()
        if step % 2 == 1:
            assert_same(got, reference(probe, model, inputs, targets))
        else:
            assert got is None
    probe.detach()


def counted_compilations() -> tuple[list[object], Callable[..., object]]:
    """A list of what was compiled, and the backend that fills it."""
    compilations: list[object] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        compilations.append(module)
        return module.forward

    return compilations, backend


def test_other_compiled_code_stays_compiled_when_the_model_is_not() -> None:
    """Uncompiled, some kernels need far more memory."""
    torch.compiler.reset()
    compilations, backend = counted_compilations()
    attached(mlp().double()).arm(True, step=0)
    torch.compile(torch.sin, backend=backend)(torch.ones(1))
    assert len(compilations) == 1


def test_compiled_code_runs_compiled_again_once_the_probe_is_gone() -> None:
    torch.compiler.reset()
    compilations, backend = counted_compilations()
    model = torch.compile(mlp(), backend=backend)
    assert isinstance(model, nn.Module)
    probe = attached(model)
    probe.arm(True, step=0)
    model(torch.ones(2, 5))
    assert not compilations
    probe.detach()
    model(torch.ones(2, 5))
    assert len(compilations) == 1


# Packed rows.


def test_rows_packed_into_one_are_not_mistaken_for_one_sample(estimator: str) -> None:
    """A flattened batch of B rows has no dim of samples, whatever the loss knows about rows."""
    model = nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11)).double()
    inputs, targets = CASES["transformer"][1]()
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    logits = model(inputs.reshape(1, -1))
    loss = FACTORS @ losses(logits.reshape(*inputs.shape, 11), targets)
    with pytest.raises(ObjectiveError, match=r"layers ran 1, .* packed into one need segments="):
        probe.expect(DOMAINS, FACTORS, loss)


# Several processes.


def _per_rank(rank: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    sketch._NARROW, sketch._VECTOR = 3, 5
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=2)
    try:
        for kind in ("DDP", "FSDP", "FSDP, watched before"):
            for estimator in ("exact", "sketch"):
                _compare(rank, kind, estimator, transformer)
                _compare(rank, kind, estimator, lambda: Functional(8))
    finally:
        dist.destroy_process_group()
    leave()


def _compare(rank: int, kind: str, estimator: str, build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net, (inputs, targets) = build().double(), CASES["transformer"][1]()
    alone = attached(copy.deepcopy(net), estimator)
    want = reference(alone, alone._model, inputs[:6], targets[:6], DOMAINS[:6])
    early = attached(net, estimator) if "before" in kind else None
    model: nn.Module = net
    if kind == "DDP":
        model = DistributedDataParallel(net)
    else:
        mesh = init_device_mesh("cpu", (2,))
        if isinstance(net, Stack):
            for block in net.blocks:
                fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
    probe = early or attached(model, estimator)
    part = slice(3 * rank, 3 * rank + 3)
    got = observe(
        probe,
        model,
        inputs[part],
        targets[part],
        domains=DOMAINS[part],
        factors=FACTORS[part],
        parts=3,
    )
    assert got is not None, kind
    sum_over_ranks(got.tensors())
    assert_same(got, want)
    assert probe.coverage.share == 1.0, kind


@pytest.mark.slow
def test_two_processes_see_together_what_one_sees(tmp_path: Path) -> None:
    """One row per micro-batch, and domains of which each process has a part."""
    spawn(_per_rank, args=(str(tmp_path),), nprocs=2)


# Normalisation layers only.


def test_the_norm_estimator_sees_normalisation_layers_and_nothing_else() -> None:
    model, (inputs, targets) = transformer().double(), CASES["transformer"][1]()
    probe = attached(model, "norm")
    got = observe(probe, model, inputs, targets)
    assert_same(got, reference(probe, model, inputs, targets))
    assert got is not None
    assert [tuple(vector.shape) for vector in got.vectors] == [(K, 8)] * 6
    assert probe.coverage.share == 1.0
    assert not probe.coverage.unseen


def test_a_model_without_normalisation_has_no_norm_estimate() -> None:
    with pytest.raises(ValueError, match=r"trainable parameters in normalisation layers"):
        GradientProbe(mlp(), K, estimator="norm")


def test_estimators_are_named() -> None:
    with pytest.raises(ValueError, match=r"estimator must be .*sketch.*exact.*norm.*; got 'all'"):
        GradientProbe(mlp(), K, estimator="all")
