"""A loader that yields each micro-batch together with how it was drawn."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from adaptmix.checks import integer
from adaptmix.data.draw import Draw
from adaptmix.data.plan import Plan
from adaptmix.errors import ExhaustedLoaderWarning, LagError

_OURS = ("batch_size", "batch_sampler", "drop_last", "sampler", "shuffle")


class Loader:
    """Iterates (batch, draw) over the steps that are still to be trained.

    Rows are drawn in the calling process and fetched by any number of workers. It is deliberately
    no ``DataLoader``, so that trainers which re-shard loaders leave it alone: it already yields
    this process's slice of the global batch.

    Args:
        plan: draws the rows.
        batch_size: rows of a micro-batch on this process.
        accumulation: micro-batches of an optimizer step.
        steps: optimizer steps of the whole run.
        rank: this process, in [0, world_size).
        world_size: number of processes.
        num_workers: as for ``DataLoader``.
        collate_fn: as for ``DataLoader``.
        options: further ``DataLoader`` options.

    Raises:
        TypeError: an option that the plan decides (batch_size, sampler, shuffle, …).
        ValueError: ``in_order=False``, which would separate batches from their draws.
        LagError: workers prefetch further than the plan's lag.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        batch_size: int,
        accumulation: int,
        steps: int,
        rank: int,
        world_size: int,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> None:
        for name in _OURS:
            if name in options:
                raise TypeError(f"{name} must not be given: the plan decides it. Leave it out.")
        if not options.get("in_order", True):
            raise ValueError("in_order must be True, so that batches meet their draws; got False.")
        self.plan = plan
        self.accumulation = accumulation
        self.total_steps = integer("steps", steps, minimum=1)
        prefetch = options.get("prefetch_factor") or 2
        self._check_lag(num_workers, prefetch)
        # A generator of its own: iterating must not move the user's global random state.
        options.setdefault("generator", torch.Generator().manual_seed(plan.seed))
        self._slices = _Slices(plan, batch_size, accumulation, self.total_steps, rank, world_size)
        self._loader: DataLoader[Any] = DataLoader(
            plan.mixture,
            batch_sampler=self._slices,
            num_workers=num_workers,
            collate_fn=collate_fn,
            **options,
        )

    def _check_lag(self, num_workers: int, prefetch: int) -> None:
        ahead = (self.accumulation - 1 + num_workers * prefetch) // self.accumulation
        if ahead > self.plan.lag:
            raise LagError(
                f"lag must be at least {ahead} with num_workers={num_workers}, prefetch_factor="
                f"{prefetch} and accumulation={self.accumulation}; got {self.plan.lag}. "
                f"Use Controller(lag={ahead}), or fewer workers."
            )

    def __len__(self) -> int:
        """Return the number of micro-batches still to come."""
        return len(self._slices)

    def __iter__(self) -> Iterator[tuple[Any, Draw]]:
        if not len(self):
            warnings.warn(
                f"All {self.total_steps} steps are trained, so the loader yields nothing. "
                "Ask for more with Controller.loader(steps=...).",
                ExhaustedLoaderWarning,
                stacklevel=2,
            )
            return
        for batch in self._loader:
            yield batch, self._slices.draws.popleft()


class _Slices(Sampler[list[int]]):
    """Yields this process's rows, micro-batch by micro-batch, and queues their draws."""

    def __init__(
        self,
        plan: Plan,
        batch_size: int,
        accumulation: int,
        steps: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.draws: deque[Draw] = deque()
        self._plan = plan
        self._shape = (accumulation, world_size, batch_size)
        self._steps = steps
        self._rank = rank

    def __len__(self) -> int:
        return max(0, self._steps - self._plan.completed) * self._shape[0]

    def __iter__(self) -> Iterator[list[int]]:
        accumulation, world_size, batch_size = self._shape
        size = accumulation * world_size * batch_size
        self.draws.clear()
        for drawn in self._plan.steps(self._plan.completed, self._steps, size=size):
            rows, domains, fresh = (
                array.reshape(self._shape)[:, self._rank]
                for array in (drawn.rows, drawn.domains, drawn.fresh)
            )
            for micro in range(accumulation):
                self.draws.append(
                    Draw.build(
                        domains=domains[micro].copy(),
                        rows=rows[micro].copy(),
                        fresh=fresh[micro].copy(),
                        domain_shares=drawn.domain_shares,
                        ordinal=drawn.step * accumulation + micro,
                        step=drawn.step,
                        plan=self._plan,
                    )
                )
                yield rows[micro].tolist()
