"""What rows and collators draw at random follows from seed and micro-batch alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from adaptmix import Controller, Mixture
from adaptmix.data._layout import Layout
from adaptmix.data._loader import Loader
from adaptmix.data._plan import Plan
from adaptmix.data._randomness import seeded
from adaptmix.data._sampler import PlanSampler


def drawn() -> list[float]:
    """A number of each generator."""
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


class Noisy(Dataset[Any]):
    """Rows that are augmented."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, row: int) -> list[float]:
        return [float(row), *drawn()]


def collate(rows: list[Any]) -> torch.Tensor:
    """Rows, each with numbers that the collator draws."""
    return torch.tensor([[*row, *drawn()] for row in rows], dtype=torch.float64)


def controller(**options: Any) -> Controller:
    parts = {"a": Noisy(), "b": Noisy()}
    return Controller(Mixture(parts, importance={"a": 1, "b": 1}), policy="static", **options)


def batches(run: Controller, stop: int, **options: Any) -> list[list[Any]]:
    found = []
    for batch in run.loader(6, steps=12, collate_fn=collate, **options):
        found.append(batch.tolist())
        run.loss(batch[:, 0].clone().requires_grad_())
        run.step()
        if run.completed == stop:
            break
    return found


pytestmark = pytest.mark.filterwarnings(
    "ignore::adaptmix.errors.RowOrderWarning", "ignore::adaptmix.errors.RepetitionWarning"
)


def test_inputs_are_the_same_with_any_number_of_workers_and_after_a_resume() -> None:
    whole = batches(controller(), 12)
    assert batches(controller(), 12, num_workers=2) == whole
    first = controller()
    start = batches(first, 5, num_workers=1)
    again = controller()
    again.load_state_dict(first.state_dict())
    assert start + batches(again, 12, num_workers=2) == whole
    assert batches(controller(seed=1), 12) != whole
    flat = np.array(whole).reshape(-1, 7)[:, 1:]
    assert np.unique(flat).size == flat.size  # no number comes twice


def test_it_can_be_switched_off() -> None:
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        runs.append(batches(controller(seed_rows=False), 2))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize(("accumulation", "world"), [(4, 1), (2, 2), (1, 4)])
def test_processes_draw_other_numbers_and_the_same_ones_as_in_other_layouts(
    accumulation: int, world: int
) -> None:
    found = []
    for rank in range(world):
        mixture = Mixture({"a": Noisy()})
        plan = Plan(mixture, shares=np.ones(1), lag=5, seed=0)
        layout = Layout(2, accumulation, rank, world)
        loader = Loader(PlanSampler(plan, layout, steps=2), collate_fn=collate)
        for number, (batch, _) in enumerate(loader.with_draws()):
            found.append((number * world + rank, batch.tolist()))
            if (number + 1) % accumulation == 0:
                plan.advance()
    whole = [batch for _, batch in sorted(found)]
    plan = Plan(Mixture({"a": Noisy()}), shares=np.ones(1), lag=5, seed=0)
    loader = Loader(PlanSampler(plan, Layout(2, 4), steps=2), collate_fn=collate)
    assert whole == [batch.tolist() for batch, _ in loader.with_draws()]


def test_the_runs_own_generators_go_on_where_they_were() -> None:
    states = (random.getstate(), torch.get_rng_state(), np.random.get_state())  # noqa: NPY002
    with seeded(5, 1):
        inside = drawn()
        with pytest.raises(ZeroDivisionError), seeded(5, 2):
            assert drawn() != inside
            raise ZeroDivisionError
    after = drawn()
    random.setstate(states[0])
    torch.set_rng_state(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    assert drawn() == after
    with seeded(5, 1):
        assert drawn() == inside
    with seeded(None, 1):
        assert drawn() != inside
