"""The training loader that takes the place of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adaptmix import Draw
from adaptmix.errors import ObjectiveError, StateError
from adaptmix.trainers import Loader, PlanSampler, loader_options


class PlannedLoader:
    """Yields the batches of a ``DataLoader``, with the rows that the plan draws.

    Batches keep their structure; how each was drawn waits here until it is trained, under the
    number that the trainer counts batches by as it hands them out, trained or not. It is no
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
        self._handed_out: Callable[[], int] = lambda: 0
        self._draws: dict[int, Draw] = {}

    def bind(self, sampler: PlanSampler, *, handed_out: Callable[[], int]) -> None:
        """Let the rows be drawn by the plan of a run.

        Args:
            sampler: of the run.
            handed_out: returns how many batches the trainer has handed out so far.

        Raises:
            LagError: workers prefetch further than the plan's lag.
        """
        self._handed_out = handed_out
        self._loader = Loader(sampler, collate_fn=self.like.collate_fn, **self._options)

    @property
    def bound(self) -> Loader:
        """The loader of the run.

        Raises:
            ObjectiveError: no run of the callback uses it.
        """
        if self._loader is None:
            raise ObjectiveError(
                "callback.loader(...) must be trained by a Trainer that has the same callback; "
                "got iterated without it. Use Trainer(callbacks=[callback])."
            )
        return self._loader

    def __len__(self) -> int:
        return len(self.bound)

    def __iter__(self) -> Iterator[Any]:
        self._draws.clear()
        # Batches may be fetched ahead, but not before those of an earlier iteration are done with.
        for number, (batch, draw) in enumerate(self.bound.with_draws(), start=self._handed_out()):
            self._draws[number] = draw
            yield batch

    def take(self) -> Draw:
        """Return how the batch was drawn that the trainer has just handed out.

        Raises:
            ObjectiveError: it is none of this loader's, was trained before, or comes after one
                that was left out.
        """
        number = self._handed_out() - 1
        if number not in self._draws:
            raise ObjectiveError(
                "training_step must get each batch of the training loader once; got one more. "
                "Optimizers that evaluate it several times (LBFGS) do not work, nor do loaders "
                "put in place after AdaptMixCallback.setup."
            )
        left_out = [earlier for earlier in self._draws if earlier < number]
        if left_out:
            raise ObjectiveError(
                f"Every batch must be trained; {len(left_out)} before this one did not reach "
                "training_step, as where on_before_batch_transfer returns None. Its domains would "
                "be left out of the objective. Return a batch of placeholder rows and losses of 0 "
                "for them, or take such rows out of the dataset."
            )
        return self._draws.pop(number)

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
