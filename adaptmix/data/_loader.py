"""A loader of the micro-batches that are still to be trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from adaptmix.data._collation import CheckedCollate, NumberedRows
from adaptmix.data._draw import Draw
from adaptmix.data._lengths import Count
from adaptmix.data._sampler import PlanSampler
from adaptmix.errors import ExhaustedLoaderWarning

_OURS = ("batch_size", "batch_sampler", "drop_last", "sampler", "shuffle")


class Loader:
    """Iterates the batches of the steps that are still to be trained, as ``collate_fn`` makes them.

    ``with_draws()`` iterates (batch, draw) instead, for loops that look ahead. Rows are drawn in
    the calling process and fetched by any number of workers. Each process gets its own rows of the
    global batch. The class is no ``DataLoader``, so that frameworks do not divide its rows again.

    Args:
        sampler: draws the rows.
        num_workers: as for ``DataLoader``.
        collate_fn: as for ``DataLoader``.
        count: of each row's supervised tokens in a batch, for the draws to carry.
        hand_out: gets the draw of each batch that is yielded without it.
        look: gets each batch and its draw before they are yielded.
        options: further ``DataLoader`` options.

    Raises:
        TypeError: an option that the plan decides (batch_size, sampler, shuffle, …).
        ValueError: ``in_order=False``, which would separate batches from their draws.
        LagError: workers prefetch further than the plan's lag.
    """

    def __init__(
        self,
        sampler: PlanSampler,
        /,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        count: Count | None = None,
        hand_out: Callable[[Draw], None] | None = None,
        look: Callable[[Any, Draw], None] | None = None,
        **options: Any,
    ) -> None:
        for name in _OURS:
            if name in options:
                raise TypeError(f"{name} must not be given: the plan decides it. Leave it out.")
        if not options.get("in_order", True):
            raise ValueError("in_order must be True, so that batches meet their draws; got False.")
        self.sampler, self._count, self._hand_out, self._look = sampler, count, hand_out, look
        plan = sampler.plan
        sampler.layout.check_lag(
            plan.lag,
            num_workers=num_workers,
            prefetch_factor=options.get("prefetch_factor") or 2,
        )
        plan.streams.read_with(num_workers, options.get("multiprocessing_context"))
        # A generator of its own: iterating must not move the user's global random state.
        options.setdefault("generator", torch.Generator().manual_seed(plan.seed))
        self._loader: DataLoader[Any] = DataLoader(
            NumberedRows(plan.mixture, seed=plan.row_seed),
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=cast(Any, CheckedCollate(collate_fn, seed=plan.row_seed)),
            **options,
        )

    def __len__(self) -> int:
        """Return the number of micro-batches still to come."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        for batch, draw in self.with_draws():
            if self._hand_out is not None:
                self._hand_out(draw)
            yield batch

    def with_draws(self) -> Iterator[tuple[Any, Draw]]:
        """Iterate (batch, draw): each batch and how it was drawn, to pass as ``draw=``.

        Raises:
            ObjectiveError: ``collate_fn`` moves rows, or leaves some out.
            LagError: the loop runs further ahead than the plan's lag.

        Warns:
            ExhaustedLoaderWarning: all steps are trained, or rows are used up.
        """
        if not len(self):
            ended = self.sampler.plan.end is not None
            warnings.warn(
                "Rows are used up (when_exhausted=, max_epochs=), so the loader yields nothing."
                if ended
                else f"All {self.sampler.steps} steps are trained, so the loader yields nothing. "
                "Ask for more with Controller.loader(steps=...) or (epochs=...).",
                ExhaustedLoaderWarning,
                stacklevel=2,
            )
            return
        for batch, number in self._loader:
            draw = self.sampler.take(number)
            if self._count is not None:
                draw = replace(draw, tokens=torch.as_tensor(self._count(batch)))
            if self._look is not None:
                self._look(batch, draw)
            yield batch, draw
