"""Loops that leave batches out, look ahead, forget a step, or are cut short by an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptmix import Controller
from adaptmix.errors import ObjectiveError
from adaptmix.state import _checkpoint as checkpoint
from adaptmix.statistics._sums import FIELDS
from tests import runs


def controller(**options: Any) -> Controller:
    settings: dict[str, Any] = {"policy": "static", "update_every": 2, "lag": 4}
    return Controller(runs.mixture(), **(settings | options))


def losses(net: Any, batch: Any) -> Tensor:
    inputs, targets, _ = batch
    return F.cross_entropy(net(inputs), targets, reduction="none")


class Fails:
    """A loop that runs out of memory in some micro-batches, and goes on."""

    def __init__(self, *, fail_at: dict[int, str], accumulation: int = 3) -> None:
        self.controller, self.net = controller(policy="variance_aware"), runs.model()
        self.controller.watch(self.net)
        self.loader = self.controller.loader(6, steps=10, accumulation=accumulation)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.02)
        self.fail_at, self.accumulation = fail_at, accumulation
        self.rows: list[list[int]] = []

    def train(self) -> Fails:
        while self.controller.completed < 10:
            try:
                self.optimizer.zero_grad()
                self.epoch()
            except torch.OutOfMemoryError:
                continue
        return self

    def fail(self, number: int, where: str) -> None:
        if self.fail_at.get(number) == where:
            del self.fail_at[number]
            raise torch.OutOfMemoryError("simulated")

    def epoch(self) -> None:
        rows: list[int] = []
        for batch, draw in self.loader.with_draws():
            self.fail(draw.ordinal, "forward")
            loss = self.controller.loss(losses(self.net, batch), draw=draw)
            self.fail(draw.ordinal, "backward")
            loss.backward()
            rows += draw.rows.tolist()
            if (draw.ordinal + 1) % self.accumulation:
                continue
            self.fail(draw.ordinal, "step")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.controller.step()
            self.rows.append(rows)
            rows = []


@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_error_that_is_caught_leaves_no_trace(accumulation: int) -> None:
    whole = Fails(fail_at={}, accumulation=accumulation).train()
    places = {2: "forward", 4: "backward", 5: "backward", 8: "step", 9: "forward"}
    cut = Fails(fail_at=places, accumulation=accumulation).train()
    assert not cut.fail_at  # every failure happened
    assert cut.rows == whole.rows
    assert torch.equal(runs.parameters(cut.net), runs.parameters(whole.net))
    left, right = cut.controller, whole.controller
    assert left.weights.sampling.tolist() == right.weights.sampling.tolist()
    for name in ("grad_var", "loss_mean", "count", "seen"):
        np.testing.assert_array_equal(
            getattr(left.statistics, name), getattr(right.statistics, name)
        )


def test_a_state_is_loaded_in_the_middle_of_a_step() -> None:
    run = runs.Run(controller(), runs.model(), accumulation=2, with_noise=False).train(3)
    state = run.controller.state_dict()
    expected = [
        draw.rows.tolist() for _, (_, draw) in zip(range(2), run.loader.with_draws(), strict=False)
    ]
    batch, draw = next(iter(run.loader.with_draws()))
    run.controller.loss(losses(run.net, batch), draw=draw).backward()
    with pytest.raises(ValueError, match=r"unfinished one. Call step\(\) first, or abandon_step"):
        run.controller.state_dict()
    run.controller.load_state_dict(state)
    again = [
        draw.rows.tolist() for _, (_, draw) in zip(range(2), run.loader.with_draws(), strict=False)
    ]
    assert again == expected
    assert run.train(8).controller.completed == 8


def test_held_out_noise_outlives_an_abandoned_step() -> None:
    own = controller()
    batch, draw = next(iter(own.loader(6, steps=4).with_draws()))
    own.loss(losses(runs.model(), batch), draw=draw)
    own.record_noise(torch.full((4,), 2.0), "a")
    own.abandon_step()
    sums = checkpoint.unseal(own.state_dict())["measurements"]["sums"]
    told = dict(zip(FIELDS, sums.sum((0, 2)).tolist(), strict=True))
    assert {name: value for name, value in told.items() if value} == {
        "recorded_residual": 8.0,
        "recorded_expected": 4.0,
        "recorded_noise_rows": 4.0,
        "recorded_residual_sq": 16.0,
        "recorded_residual_expected": 8.0,
        "recorded_expected_sq": 4.0,
    }


def test_another_loop_error_says_what_it_is() -> None:
    net = runs.model()

    def loop(*uses: int, accumulation: int = 1, step: bool = True) -> None:
        own = controller()
        loader = own.loader(6, steps=9, accumulation=accumulation)
        seen = list(zip(range(5), loader.with_draws(), strict=False))
        for number in uses:
            own.loss(losses(net, seen[number][1][0]), draw=seen[number][1][1]).backward()
            if step and (number + 1) % accumulation == 0:
                own.step()

    with pytest.raises(
        ValueError, match=r"number 1, the next to train; got 2, so a batch was left"
    ):
        loop(0, 2)
    with pytest.raises(
        ValueError, match=r"number 0, the next to train; got 1, so a batch was left"
    ):
        loop(1)
    with pytest.raises(ValueError, match=r"number 1, the next to train; got 0 again"):
        loop(0, 0)
    with pytest.raises(ValueError, match=r"number 2, the next to train; got 1 again"):
        loop(0, 1, 1, accumulation=2, step=False)
    for accumulation in (1, 2):
        with pytest.raises(ValueError, match=r"step\(\) must be called after each optimizer.step"):
            loop(*range(4), accumulation=accumulation, step=False)
    with pytest.raises(ValueError, match="start the loader anew"):
        loop(0, 2)


def test_a_second_loader_that_is_not_used_changes_nothing() -> None:
    """The gradient's length was halved by a loader of twice the rows."""

    def gradient(*others: tuple[int, int]) -> Tensor:
        own, net = controller(), runs.model()
        loader = own.loader(6, steps=8)
        for size, accumulation in others:
            own.loader(size, accumulation=accumulation, steps=3)
        batch, draw = next(iter(loader.with_draws()))
        own.loss(losses(net, batch), draw=draw).backward()
        counts = own.mixture.importance / (draw.domain_shares * 6)
        written_out = torch.from_numpy(counts)[draw.domains] @ losses(net, batch)
        parts = torch.autograd.grad(written_out, list(net.parameters()))
        wanted = torch.cat([part.flatten() for part in parts])
        got = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
        own.step()
        return got

    assert torch.equal(gradient(), gradient((12, 1), (6, 4)))


def test_two_loaders_in_one_step_are_refused() -> None:
    own, net = controller(), runs.model()
    first = next(iter(own.loader(6, accumulation=2, steps=8).with_draws()))
    second = own.loader(6, accumulation=3, steps=8)
    own.loss(losses(net, first[0]), draw=first[1])
    batch, draw = next(iter(second.with_draws()))  # begins the step anew
    own.loss(losses(net, batch), draw=draw)
    with pytest.raises(ValueError, match="must be of the loader that the step began with"):
        own.loss(losses(net, first[0]), draw=first[1])


def collate(kind: str, rows: list[Any]) -> Any:
    if kind == "sorts":
        rows = sorted(rows, key=lambda row: float(row[0][0]))
    if kind == "drops":
        rows = [row for row in rows if int(row[2]) % 5]
    if kind == "none" and int(rows[0][2]) % 4 == 0:
        return None
    return tuple(torch.stack([torch.as_tensor(row[i]) for row in rows]) for i in range(3))


class Collator:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, rows: list[Any]) -> Any:
        return collate(self.kind, rows)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("sorts", "must keep rows in the order it is given them"),
        (
            "drops",
            "the draw's 12 rows first; .* If collate_fn left out rows, return placeholder rows",
        ),
        ("none", "must make a batch of its 12 rows; got None"),
    ],
)
def test_collators_that_move_or_leave_out_rows(kind: str, match: str, workers: int) -> None:
    own = controller()
    loader = own.loader(12, steps=30, collate_fn=Collator(kind), num_workers=workers)
    with pytest.raises((ObjectiveError, ValueError), match=match):
        for batch, draw in loader.with_draws():
            own.loss(losses(runs.model(), batch), draw=draw)
            own.step()


def test_a_collator_that_sorts_now_and_then() -> None:
    """Whose first batches come in order, as rows of one length do."""
    calls = []

    def late(rows: list[Any]) -> Any:
        calls.append(len(rows))
        return collate("sorts" if len(calls) > 60 else "keeps", rows)

    own = controller()
    with pytest.raises(ObjectiveError, match="must keep rows in the order"):
        for batch, draw in own.loader(12, steps=200, collate_fn=late).with_draws():
            own.loss(losses(runs.model(), batch), draw=draw)
            own.step()
