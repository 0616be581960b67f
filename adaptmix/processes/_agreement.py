"""Processes go on together, or all of them stop with the same sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from adaptmix.errors import ProcessMismatchError
from adaptmix.processes._sums import gather, world
from adaptmix.state._identity import brief, differences, digest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Agreement:
    """Lets the processes of a run go on only if they are of one mind.

    What it sends does not depend on what they disagree about, so that nobody is left waiting: a
    process that has found a problem brings it here rather than raise it alone.

    Args:
        names: of the domains, for messages.
        group: the processes; all of them when None.

    Attributes:
        device: that this process computes on, which its backend may send from; None when unknown.
    """

    def __init__(self, names: Sequence[str], group: ProcessGroup | None = None) -> None:
        self._names, self._group = names, group
        self.device: torch.device | None = None

    @property
    def world(self) -> tuple[int, int]:
        """(rank, number of processes)."""
        return world(self._group)

    def moved(self, rank: int, size: int) -> str | None:
        """Return what is wrong with a loader made as ``rank`` of ``size``; None when nothing is."""
        here = self.world
        if here == (rank, size):
            return None
        return (
            f"the loader was made as rank {rank} of {size} processes, and this is rank {here[0]} "
            f"of {here[1]}. Make the loader after torch.distributed.init_process_group(), and anew "
            "when processes change."
        )

    def reach(
        self,
        common: Callable[[], Mapping[str, Any]],
        *,
        facts: frozenset[str] = frozenset(),
        problem: str | None = None,
    ) -> frozenset[str]:
        """Return if all processes are of one mind; all of them call this in the same places.

        Args:
            common: returns what must be the same on every process, in plain values and arrays.
            facts: what this process has seen, which the others need not have.
            problem: why this process cannot go on; None when it can.

        Returns:
            What any of them has seen.

        Raises:
            ProcessMismatchError: on every process alike, with the first that differs and its field.
            ValueError: the problem, where there is one process only.
        """
        if self.world[1] == 1:
            if problem is not None:
                raise ValueError(problem)
            return facts
        fields = common()
        told = self.gather((digest(fields), sorted(facts), problem))
        for rank, (_, _, trouble) in enumerate(told):
            if trouble is not None:
                raise ProcessMismatchError(f"Rank {rank} cannot go on: {trouble}")
        if any(hash_ != told[0][0] for hash_, _, _ in told):
            self._refuse(self.gather(fields))
        return frozenset(fact for _, seen, _ in told for fact in seen)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, one that can be pickled; all of them call this."""
        return gather(value, self._group, device=self.device)

    def _refuse(self, fields: Sequence[Mapping[str, Any]]) -> NoReturn:
        for rank, theirs in enumerate(fields):
            for path, first, other in differences(fields[0], theirs, names=self._names):
                raise ProcessMismatchError(
                    f"{path} differs between data-parallel ranks: rank 0 has {brief(first)}, rank "
                    f"{rank} has {brief(other)}. Build the controller, its loader and its pins "
                    "with the same arguments on every process, and load the same checkpoint."
                )
        raise ProcessMismatchError(
            f"Types differ between data-parallel ranks: {brief(str(fields))}."
        )
