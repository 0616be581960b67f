"""A loader of prompts: those of a generation come with its first micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Sampler

from adaptmix.errors import LagError
from adaptmix.trainers import DrawnRows, NumberedRows, PlanSampler, loader_options
from adaptmix_transformers._group_shape import GroupShape


class Prompts(list[Any]):
    """Rows of the dataset, with the number of the micro-batch that they begin at.

    Args:
        rows: of the dataset.
        number: of the micro-batch.
    """

    def __init__(self, rows: list[Any], number: int) -> None:
        super().__init__(rows)
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self), self.number)


class Generations(Sampler[list[int]]):
    """Joins the micro-batches of each generation; all but the first come without rows.

    Args:
        sampler: draws each micro-batch's prompts.
        shape: of the run.
    """

    def __init__(self, sampler: PlanSampler, shape: GroupShape) -> None:
        self._sampler, self._shape = sampler, shape

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[int]]:
        drawn = iter(self._sampler)
        while parts := list(islice(drawn, self._shape.period)):
            rows = [row for part in parts[: self._shape.together] for row in part]
            for number, part in enumerate(parts):
                if isinstance(part, DrawnRows):
                    yield DrawnRows([] if number else rows, part.ordinal, part.part)
                else:  # skipped by the trainer
                    yield []


def prompt_loader(sampler: PlanSampler, like: Any, shape: GroupShape) -> DataLoader[Any]:
    """Return a ``DataLoader`` in the place of a GRPOTrainer's.

    Args:
        sampler: draws the prompts.
        like: the loader it replaces; worker options are its own.
        shape: of the run.

    Raises:
        TypeError: ``like`` is no loader of a map-style dataset.
        LagError: prompts are drawn further ahead than the plan's lag.
    """
    plan, options = sampler.plan, loader_options(like)
    ahead = steps_ahead(like, shape)
    if plan.lag < ahead:
        raise LagError(
            f"lag must be at least {ahead} with num_iterations={shape.iterations}, "
            f"steps_per_generation={shape.together}, gradient_accumulation_steps="
            f"{shape.accumulation} and dataloader_num_workers={like.num_workers}, which draw so "
            f"many steps ahead; got {plan.lag}. Use lag={ahead}, or leave it out."
        )
    return DataLoader(
        NumberedRows(plan.mixture, seed=plan.row_seed),
        batch_sampler=Generations(sampler, shape),
        collate_fn=cast(Any, _collate),
        generator=torch.Generator().manual_seed(plan.seed),
        **options,
    )


def steps_ahead(like: Any, shape: GroupShape) -> int:
    """Return how many steps a GRPOTrainer draws beyond the one that it trains.

    Args:
        like: its loader.
        shape: of the run.
    """
    ahead = shape.batches_ahead(
        num_workers=like.num_workers, prefetch_factor=like.prefetch_factor or 2
    )
    return shape.layout.steps_ahead(1, ahead)


def _collate(numbered: tuple[list[Any], int]) -> Prompts:
    rows, number = numbered
    return Prompts(rows, int(number))
