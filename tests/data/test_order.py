"""Losses without a draw are those of the batch that is out; where that is not clear, they are
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from adaptmix import Controller
from adaptmix.errors import BatchOrderError
from tests import runs

SEVERAL = r"^draw must be given .*: 2 batches \(numbers 0, 1\) were handed out .*with_draws\(\)"
NONE = r"^Losses must be of a batch that controller.loader\(\) handed out; got none since"


def controller(**options: Any) -> Controller:
    settings: dict[str, Any] = {"policy": "variance_aware", "update_every": 3, "lag": 8}
    return Controller(runs.mixture(), **(settings | options))


def losses(net: Any, batch: Any) -> Tensor:
    inputs, targets, _ = batch
    return F.cross_entropy(net(inputs), targets, reduction="none")


class Loop:
    """A loop that knows batches alone, and notes which rows it trained on."""

    def __init__(self, net: Any, *, steps: int = 9, accumulation: int = 1, **options: Any) -> None:
        self.controller, self.net = controller(measure_every=1), net
        self.controller.watch(net)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
        self.accumulation = accumulation
        self.loader = self.controller.loader(6, steps=steps, accumulation=accumulation, **options)
        self.rows: list[list[int]] = []

    def train(self, stop: int | None = None) -> Loop:
        for number, batch in enumerate(self.loader, start=1):
            self.controller.loss(losses(self.net, batch)).backward()
            self.rows.append(batch[2].tolist())
            if number % self.accumulation == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.controller.step()
                if self.controller.completed == stop:
                    break
        return self


def with_draws(net: Any, *, accumulation: int) -> tuple[list[list[int]], Tensor]:
    own = controller(measure_every=1)
    own.watch(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    rows = []
    loader = own.loader(6, steps=9, accumulation=accumulation)
    for number, (batch, draw) in enumerate(loader.with_draws(), start=1):
        own.loss(losses(net, batch), draw=draw).backward()
        assert torch.equal(own.mixture[int(draw.rows[0])][0], batch[0][0])
        rows.append(batch[2].tolist())
        if number % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
            own.step()
    return rows, runs.parameters(net)


@pytest.mark.parametrize(("accumulation", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_a_batch_alone_trains_as_a_batch_with_its_draw(accumulation: int, workers: int) -> None:
    wanted, parameters = with_draws(runs.model(), accumulation=accumulation)
    whole = Loop(runs.model(), accumulation=accumulation, num_workers=workers).train()
    assert whole.rows == wanted
    assert torch.equal(runs.parameters(whole.net), parameters)
    first = Loop(runs.model(), accumulation=accumulation, num_workers=workers).train(4)
    second = Loop(runs.model(seed=9), accumulation=accumulation)
    second.net.load_state_dict(first.net.state_dict())
    second.controller.load_state_dict(first.controller.state_dict())
    second.train()
    assert first.rows + second.rows == wanted
    assert torch.equal(runs.parameters(second.net), parameters)


def test_multipliers_and_observations_are_of_the_batch_that_is_out() -> None:
    left, right = controller(policy="static"), controller(policy="static")
    nets = runs.model(), runs.model()
    pairs = zip(left.loader(12, steps=4), right.loader(12, steps=4), strict=True)
    for batch, same in pairs:
        left.loss(losses(nets[0], batch)).backward()
        factors = right.multipliers()
        assert torch.equal(factors, right.multipliers())  # only told, not taken
        loss = (losses(nets[1], same) * factors).mean()
        right.observe(loss, factors=factors / 12)
        loss.backward()
        for own in (left, right):
            own.step()
        for mine, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-14)


def one_ahead(batches: Any) -> Iterator[Any]:
    """As accelerate's and other loaders do, to know which batch is the last."""
    ahead = iter(batches)
    batch = next(ahead)
    for following in ahead:
        yield batch
        batch = following
    yield batch


def every_other(batches: Any) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        if number % 2:
            yield batch


def train(own: Controller, batches: Any) -> None:
    net = runs.model()
    for batch in batches:
        own.loss(losses(net, batch)).backward()
        own.step()


class Batches(IterableDataset[Any]):
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def accelerates(batches: Any) -> Any:
    return pytest.importorskip("accelerate.data_loader").DataLoaderShard(
        Batches(batches), batch_size=None
    )


@pytest.mark.parametrize("wrap", [one_ahead, every_other, accelerates])
@pytest.mark.parametrize("workers", [0, 2])
def test_loops_that_look_ahead_or_leave_batches_out_are_refused(
    wrap: Callable[[Any], Any], workers: int
) -> None:
    own = controller(policy="static")
    with pytest.raises(BatchOrderError, match=SEVERAL):
        train(own, wrap(own.loader(6, steps=8, num_workers=workers)))
    assert own.completed == 0


def test_a_loop_that_looks_ahead_passes_draws() -> None:
    own, net = controller(policy="static"), runs.model()
    for batch, draw in one_ahead(own.loader(6, steps=4).with_draws()):
        own.loss(losses(net, batch), draw=draw).backward()
        own.step()
    assert own.completed == 4


def test_a_batch_is_trained_once() -> None:
    own, net = controller(policy="static"), runs.model()
    with pytest.raises(BatchOrderError, match=NONE):
        own.loss(torch.ones(6))
    loader = own.loader(6, steps=4, accumulation=2)
    batch = next(iter(loader))
    own.loss(losses(net, batch))
    with pytest.raises(BatchOrderError, match=NONE):
        own.loss(losses(net, batch))
    with pytest.raises(BatchOrderError, match=r"^step\(\) must follow 2 calls of loss"):
        own.step()
    for _ in loader.with_draws():
        with pytest.raises(BatchOrderError, match=r"With loader.with_draws\(\), pass draw="):
            own.loss(losses(net, batch))
        break


def test_losses_that_were_refused_may_be_given_again() -> None:
    own, net = controller(policy="static"), runs.model()
    batch = next(iter(own.loader(6, steps=4)))
    with pytest.raises(ValueError, match="got a scalar"):
        own.loss(losses(net, batch).mean())
    own.loss(losses(net, batch))
    own.step()
    assert own.completed == 1


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_iteration_begins_with_no_batch_out(accumulation: int) -> None:
    """After a loop was left with one, by an error or by choice; and with another loader."""
    own, net = controller(policy="static"), runs.model()
    loader = own.loader(6, steps=3, accumulation=accumulation)
    first = next(iter(loader))
    for batches in (loader, own.loader(6, steps=3, accumulation=accumulation)):
        batch = next(iter(batches))
        assert torch.equal(batch[2], first[2])
    assert torch.equal(next(iter(loader.with_draws()))[0][2], first[2])
    with pytest.raises(BatchOrderError, match=NONE):
        own.loss(losses(net, first))
    for number, batch in enumerate(loader, start=1):
        own.loss(losses(net, batch)).backward()
        if number % accumulation == 0:
            own.step()
    assert own.completed == 3


def test_an_error_in_a_loop_that_goes_on_is_noticed() -> None:
    own, net = controller(policy="static"), runs.model()
    with pytest.raises(BatchOrderError, match=r"2 batches \(numbers 1, 2\) .*start the loader"):
        for number, batch in enumerate(own.loader(6, steps=8)):
            if number == 1:
                continue  # as after an error that was caught before loss()
            own.loss(losses(net, batch)).backward()
            own.step()
    for batch in own.loader(6, steps=8):
        own.loss(losses(net, batch)).backward()
        own.step()
    assert own.completed == 8


def test_abandoning_a_step_forgets_its_batches_and_no_other() -> None:
    own, net = controller(policy="static"), runs.model()
    batches = iter(own.loader(6, steps=4, accumulation=2))
    batch = next(batches)
    own.abandon_step()  # between steps: nothing to forget
    own.loss(losses(net, batch))
    batch = next(batches)
    own.abandon_step()
    with pytest.raises(BatchOrderError, match=NONE):
        own.loss(losses(net, batch))
    next(batches)
    with pytest.raises(BatchOrderError, match=r"must be number 0, .* got 2, .* start the loader"):
        own.loss(losses(net, batch))
    own.load_state_dict(own.state_dict())
    with pytest.raises(BatchOrderError, match=NONE):
        own.loss(losses(net, batch))
