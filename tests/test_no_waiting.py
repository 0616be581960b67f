"""A training step launches work on the device and waits for none of it.

Shown without one: tensors of the device "meta" have no values that could be waited for, and every
copy from the host to it is seen. What is waited for on a GPU is a blocking copy, and a value.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adaptmix import Controller, Mixture, Segments, noise
from adaptmix.trainers._head import WeightedHead

aten = torch.ops.aten
ROWS, T, CLASSES = 6, 20, 5


class NoWaiting(TorchDispatchMode):
    """Refuses what a GPU's host would wait for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if function is aten._local_scalar_dense.default:
            raise AssertionError("a value is read")
        if function is aten._to_copy.default:
            here, there = args[0].device, torch.device(options.get("device") or args[0].device)
            if here.type != there.type and not options.get("non_blocking"):
                raise AssertionError(f"a blocking copy from {here} to {there}")
        return function(*args, **options)


def first(unit: str, mode: str) -> tuple[Controller, Any]:
    mixture = Mixture({"a": list(range(20)), "b": list(range(30))})
    controller = Controller(mixture, policy="static", unit=unit, mode=mode)
    _, draw = next(iter(controller.loader(ROWS, steps=4).with_draws()))
    return controller, draw


def meta(*shape: int) -> Tensor:
    return torch.zeros(*shape, device="meta", requires_grad=True)


def test_a_blocking_copy_is_seen() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="blocking copy"):
        torch.ones(2).to("meta")


@pytest.mark.parametrize("mode", ["adapt", "observe"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_step_of_the_controller(mode: str, masked: bool) -> None:
    controller, draw = first("sample", mode)
    logits, targets = meta(ROWS, T, CLASSES), meta(ROWS, T).detach().long()
    mask = meta(ROWS, T).detach().bool() if masked else None
    with NoWaiting():
        terms = noise.softmax(logits, targets)
        controller.loss(meta(ROWS, T), draw=draw, noise=terms, mask=mask).backward()
        controller.step()


def test_packed_rows() -> None:
    controller, draw = first("sample", "adapt")
    segments = Segments(torch.arange(ROWS).repeat_interleave(2).view(2, -1))
    with NoWaiting():
        controller.loss(meta(2, ROWS), draw=draw, segments=segments).backward()
        controller.step()


def test_a_head() -> None:
    controller, draw = first("sample", "adapt")
    model = nn.Sequential(nn.Linear(3, 2, device="meta"))
    head = WeightedHead(model, "0")
    with NoWaiting():
        factors = controller.multipliers(draw)
        head.open(factors)
        loss = model(meta(ROWS, 3)).mean()
        head.close()
        controller.observe(loss, draw=draw, factors=factors)
        loss.backward()
        head.check_backward()
        controller.step()
