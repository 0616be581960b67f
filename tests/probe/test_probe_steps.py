"""The probe beside the rest of a training step: it disturbs nothing and nothing disturbs it.

Also tests ``probe/_hooks.py`` and ``statistics/_watch.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from adaptmix.probe._probe import GradientProbe
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
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.mark.parametrize("reentrant", [None, True, False])
@pytest.mark.parametrize("moment", ["first", "forward", "expect", "backward"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_other_forwards_inside_a_step_change_nothing(
    case: tuple[Stack, Tensor, Tensor],
    moment: str,
    differentiable: bool,
    reentrant: bool | None,
    estimator: str,
) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    want = reference(probe, model, inputs, targets)
    model.reentrant = reentrant
    aside = []

    def evaluate(now: str) -> None:
        if now == moment:
            with torch.set_grad_enabled(differentiable):
                aside.append(model(inputs[:2]))

    probe.arm(True, step=0)
    for part in torch.arange(len(DOMAINS)).chunk(2):
        evaluate("first")
        output = model(inputs[part])
        evaluate("forward")
        loss = FACTORS[part] @ losses(output, targets[part])
        probe.expect(DOMAINS[part], FACTORS[part], loss)
        evaluate("expect")
        loss.backward()
        evaluate("backward")
    assert_same(probe.collect(), want)


def test_the_backward_of_another_loss_is_not_counted(
    case: tuple[Stack, Tensor, Tensor], estimator: str
) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    early = losses(model(inputs), targets).sum()
    loss = FACTORS @ losses(model(inputs), targets)
    probe.expect(DOMAINS, FACTORS, loss)
    early.backward()
    loss.backward()
    late = losses(model(inputs), targets).sum()
    late.backward()
    assert_same(probe.collect(), reference(probe, model, inputs, targets))


def test_steps_do_not_mix(case: tuple[Stack, Tensor, Tensor], estimator: str) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    first, rest = slice(0, 3), slice(3, None)
    for part in (first, rest):
        got = observe(
            probe,
            model,
            inputs[part],
            targets[part],
            domains=DOMAINS[part],
            factors=FACTORS[part],
            parts=2,
        )
        assert_same(got, reference(probe, model, inputs[part], targets[part], DOMAINS[part]))
    assert probe.collect() is None


def test_a_copy_of_an_observed_model_is_not_observed(
    case: tuple[Stack, Tensor, Tensor], estimator: str
) -> None:
    model, inputs, targets = case
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    average = copy.deepcopy(model)
    average(inputs)
    loss = FACTORS @ losses(model(inputs), targets)
    probe.expect(DOMAINS, FACTORS, loss)
    average(inputs)
    loss.backward()
    got = probe.collect()
    assert got is not None
    assert_same(got, reference(probe, model, inputs, targets))


def test_nothing_is_collected_without_observing_or_backward(estimator: str) -> None:
    model, (inputs, targets) = mlp().double(), CASES["mlp"][1]()
    probe = attached(model, estimator)
    assert probe.collect() is None
    for observing, backward in [(False, True), (True, False)]:
        probe.arm(observing, step=0)
        loss = FACTORS @ losses(model(inputs), targets)
        probe.expect(DOMAINS, FACTORS, loss)
        if backward:
            loss.backward()
        assert probe.collect() is None
    loss.backward()
    assert probe.collect() is None


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_training_is_the_same_to_the_bit(
    case: tuple[Stack, Tensor, Tensor], reentrant: bool | None, estimator: str
) -> None:
    model, inputs, targets = case
    model.reentrant = reentrant
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def train(probe: GradientProbe | None) -> list[Tensor]:
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(4):
            if probe is not None:
                probe.arm(step != 1, step=0)
            for part in torch.arange(len(DOMAINS)).chunk(2):
                loss = FACTORS[part] @ losses(model(inputs[part]), targets[part])
                if probe is not None:
                    probe.expect(DOMAINS[part], FACTORS[part], loss)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if probe is not None:
                assert (probe.collect() is None) == (step == 1)
        return [parameter.detach().clone() for parameter in model.parameters()]

    plain, observed = train(None), train(attached(model, estimator))
    assert all(torch.equal(one, other) for one, other in zip(plain, observed, strict=True))


def test_detaching_leaves_nothing_behind(
    case: tuple[Stack, Tensor, Tensor], estimator: str
) -> None:
    model, inputs, targets = case

    def attributes() -> list[set[str]]:
        return [set(module.__dict__) for module in model.modules()]

    before = attributes()
    probe = attached(model, estimator)
    probe.arm(True, step=0)
    loss = FACTORS @ losses(model(inputs), targets)
    probe.expect(DOMAINS, FACTORS, loss)
    probe.detach()
    probe.detach()
    loss.backward()
    assert probe.collect() is None
    assert attributes() == before
    assert not any(module._forward_hooks for module in model.modules())
    probe.attach()
    assert_same(observe(probe, model, inputs, targets), reference(probe, model, inputs, targets))


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device(name: str, estimator: str) -> None:
    """Fake tensors have no values: whatever asks for one raises."""
    build, data = CASES[name]
    with FakeTensorMode():
        model, (inputs, targets) = build(), data()
        if inputs.is_floating_point():
            inputs = inputs.float()
        domains, factors = torch.zeros(B, dtype=torch.int64), torch.ones(B)
        probe = attached(model, estimator)
        got = observe(
            *(probe, model, inputs, targets),
            domains=domains,
            factors=factors,
            parts=2,
            proved=False,
        )
        assert got is not None
        assert got.gram().shape == (K, K)
        with pytest.raises(DataDependentOutputException):
            got.skipped.item()


def test_one_probe_at_a_time(estimator: str) -> None:
    model = mlp()
    probe = attached(model, estimator)
    for other in (
        probe,
        GradientProbe(model, K, estimator="exact"),
        GradientProbe(model.blocks, K),
    ):
        with pytest.raises(ValueError, match=r"watched by one controller at most.*remove"):
            other.attach()
    probe.detach()
    attached(model, estimator).detach()


def test_what_cannot_be_observed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn.Module; got function"):
        GradientProbe(mlp, K)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_domains must be an integer >= 1; got 0"):
        GradientProbe(mlp(), 0)
    with pytest.raises(ValueError, match="model must have trainable parameters"):
        GradientProbe(nn.ReLU(), K)


@pytest.mark.parametrize(
    ("domains", "factors", "message"),
    [
        (DOMAINS, FACTORS[:2], r"got \(7,\) and \(2,\)"),
        (DOMAINS[0], FACTORS[0], r"got \(\) and \(\)"),
    ],
)
@pytest.mark.parametrize("observing", [True, False])
def test_lengths_must_agree(
    domains: Tensor, factors: Tensor, message: str, observing: bool, estimator: str
) -> None:
    probe = attached(mlp(), estimator)
    probe.arm(observing, step=0)
    with pytest.raises(ValueError, match=message):
        probe.expect(domains, factors, torch.zeros((), requires_grad=True))


@pytest.mark.parametrize("loss", [torch.zeros(2, requires_grad=True), torch.zeros(())])
def test_the_loss_must_be_a_scalar_to_differentiate(loss: Tensor, estimator: str) -> None:
    probe = attached(mlp(), estimator)
    probe.arm(True, step=0)
    with pytest.raises(ValueError, match="loss must be a scalar that requires grad"):
        probe.expect(DOMAINS, FACTORS, loss)


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
def test_distributed_data_parallel_is_unwrapped(case: tuple[Stack, Tensor, Tensor]) -> None:
    model, inputs, targets = case
    wrapped = DistributedDataParallel(model)
    probe = GradientProbe(wrapped, K, estimator="exact")
    probe.attach()
    got = observe(probe, wrapped, inputs, targets)
    assert_same(got, reference(probe, model, inputs, targets))


def test_parameters_that_are_unfrozen_or_added_in_mid_run_are_seen(estimator: str) -> None:
    model, (inputs, targets) = mlp().double(), CASES["mlp"][1]()
    model.stem.requires_grad_(False)
    probe = attached(model, estimator)
    assert_same(observe(probe, model, inputs, targets), reference(probe, model, inputs, targets))
    model.stem.requires_grad_(True)
    assert_same(observe(probe, model, inputs, targets), reference(probe, model, inputs, targets))
    assert len(probe._parameters.shapes) == len(list(model.parameters()))
    model.blocks.append(nn.Linear(8, 8).double())
    assert_same(observe(probe, model, inputs, targets), reference(probe, model, inputs, targets))
    assert len(probe._parameters.shapes) == len(list(model.parameters()))
    assert probe.coverage.share == 1.0
