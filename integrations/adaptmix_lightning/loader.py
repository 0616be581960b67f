"""The training loader that takes the place of the user's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from adaptmix import Draw, StateError
from adaptmix.data import Loader, PlanSampler, loader_options
from adaptmix.errors import SeamError


class PlannedLoader:
    """Yields the batches of a ``DataLoader``, with the rows that the plan draws.

    Batches keep their structure; how each was drawn waits here until it is trained. It is no
    ``DataLoader``, so that Lightning neither shards it nor builds it anew.

    Args:
        like: the loader whose dataset, collation and worker options are used.

    Raises:
        TypeError: ``like`` is no loader of a map-style dataset.
        ValueError: its batches may come out of order.
    """

    def __init__(self, like: Any) -> None:
        self._options = loader_options(like)
        self.like = like
        self._loader: Loader | None = None
        self._draws: deque[Draw] = deque()

    def bind(self, sampler: PlanSampler) -> None:
        """Let the rows be drawn by the plan of a run.

        Raises:
            LagError: workers prefetch further than the plan's lag.
        """
        self._loader = Loader(sampler, collate_fn=self.like.collate_fn, **self._options)

    @property
    def bound(self) -> Loader:
        """The loader of the run.

        Raises:
            SeamError: no run of the callback uses it.
        """
        if self._loader is None:
            raise SeamError(
                "callback.loader(...) must be trained by a Trainer that has the same callback; "
                "got iterated without it. Use Trainer(callbacks=[callback])."
            )
        return self._loader

    def __len__(self) -> int:
        return len(self.bound)

    def __iter__(self) -> Iterator[Any]:
        self._draws.clear()
        for batch, draw in self.bound:
            self._draws.append(draw)
            yield batch

    def take(self) -> Draw:
        """Return how the next batch to train was drawn.

        Raises:
            SeamError: no batch of this loader waits to be trained.
        """
        if not self._draws:
            raise SeamError(
                "training_step must get each batch of the training loader once; got one more. "
                "Optimizers that evaluate it several times (LBFGS) do not work, nor do loaders "
                "put in place after AdaptMixCallback.setup."
            )
        return self._draws.popleft()

    def state_dict(self) -> dict[str, int]:
        """Return the position, which tells Lightning that the loader goes on where it stopped."""
        return {"completed": self.bound.sampler.plan.completed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Check that callback and loader were saved at the same place.

        Raises:
            StateError: they were not.
        """
        completed = self.bound.sampler.plan.completed
        if state["completed"] != completed:
            raise StateError(
                f"The callback's state must be of step {state['completed']}, as the loader's; got "
                f"step {completed}. Use another checkpoint."
            )
