"""Passes beside training give back whatever they change."""

from __future__ import annotations

import copy
import random
from collections import Counter, defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptmix.trainers import leaving_no_trace, random_state


class Centred(nn.Module):
    """A layer with a running mean that is another tensor after each pass, and a counter."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))
        self.passes = 0

    def forward(self, rows: Tensor) -> Tensor:
        self.centre = 0.9 * self.centre + 0.1 * rows.detach().mean(0)
        self.passes += 1
        return rows - self.centre


class Student(nn.Module):
    """Gathers things in all the ways that a training step does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.body = nn.Sequential(nn.Linear(3, 3), Centred())
        self.teacher = nn.Linear(3, 3).requires_grad_(False)
        self.by_name: dict[str, Any] = {"train": defaultdict(list)}
        self.last: deque[float] = deque([0.5], maxlen=2)
        self.counts: Counter[str] = Counter(rows=1)
        self.lists: list[list[float]] = [[], []]
        self.seen: set[int] = set()
        self.queue = torch.zeros(2, 3)
        self.generator = torch.Generator()
        with torch.inference_mode():
            self.validated = torch.ones(3)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.body(self.dropout(self.norm(rows)))
        self.by_name["train"]["loss"].append(float(out.detach().sum()))
        self.last.append(1.0)
        self.counts["rows"] += len(rows)
        self.lists[1].append(2.0)
        self.seen.add(len(self.seen))
        self.queue[0] = out[0].detach()
        self.teacher.weight.data.mul_(0.9)
        self.fresh = out + torch.randn((), generator=self.generator)
        self.validated = out.detach()
        np.random.rand()  # noqa: NPY002
        random.random()
        return out


def told(student: Student) -> dict[str, Any]:
    """All that a student holds."""
    names = ("by_name", "last", "counts", "lists", "seen", "queue", "validated")
    held = {name: copy.deepcopy(getattr(student, name)) for name in names}
    state: dict[str, Any] = {name: value.clone() for name, value in student.state_dict().items()}
    layer = student.body[1]
    return held | state | {"passes": layer.passes, "drawn": student.generator.get_state()}


def test_whatever_a_pass_changes_is_given_back() -> None:
    student = Student()
    before, drawn = told(student), random_state()
    others: Any = np.random.get_state(), random.getstate()  # noqa: NPY002
    held = {name: id(getattr(student, name)) for name in ("by_name", "last", "lists", "queue")}
    inner = student.by_name["train"]
    with leaving_no_trace(student, seed=0):
        first = student(torch.randn(4, 3))
        assert not torch.equal(student.state_dict()["body.1.centre"], before["body.1.centre"])
    with leaving_no_trace(student, seed=0):
        second = student(torch.randn(4, 3))
    assert torch.equal(first, second)
    assert not hasattr(student, "fresh")
    for name, value in told(student).items():
        same = torch.equal(value, before[name]) if isinstance(value, Tensor) else None
        assert value == before[name] if same is None else same, name
    assert {name: id(getattr(student, name)) for name in held} == held
    assert student.by_name["train"] is inner
    assert type(inner) is defaultdict
    assert student.last.maxlen == 2
    assert torch.equal(random_state(), drawn)
    numbers: Any = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(numbers[1], others[0][1])
    assert random.getstate() == others[1]


def test_layers_that_rows_meet_in_are_evaluated_inside() -> None:
    student = Student()
    student.norm.eval()
    with leaving_no_trace(student, seed=0):
        inside = {name: module.training for name, module in student.named_modules()}
    assert {name for name, training in inside.items() if training} == {
        *("", "body", "body.0", "teacher")
    }
    assert {name for name, module in student.named_modules() if not module.training} == {"norm"}


def test_what_an_owner_keeps_beside_the_model_is_given_back() -> None:
    class Owner:
        rows: Any
        teacher: Any

    owner, model = Owner(), nn.Linear(3, 3)
    owner.rows, owner.teacher = [{"ids": [1, 2]}] * 1000, nn.Linear(3, 3)
    weight, rows = owner.teacher.weight.detach().clone(), owner.rows
    with leaving_no_trace(model, owner, seed=0):
        owner.rows.append({})
        owner.teacher.weight.data.add_(1.0)
        owner.other = 1  # type: ignore[attr-defined]
    assert owner.rows is rows
    assert len(rows) == 1000
    assert torch.equal(owner.teacher.weight, weight)
    assert not hasattr(owner, "other")
