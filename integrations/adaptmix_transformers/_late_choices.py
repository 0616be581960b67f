"""When a loss is rehearsed again, for its choice of rows may begin in mid-run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adaptmix.trainers import now_and_then

_TRIES = 16  # rows of one length do not tell what a mean over tokens divides by
_AT_ONCE = 4  # one exchange of rows may leave a choice as it is


class LateChoices:
    """Counts the rehearsals that a loss still needs.

    A choice of rows by a mask made of losses leaves no trace in the graph. Where it begins, other
    operations, or rows that count for nothing, are new in the loss: it is rehearsed several times.
    What neither tells is looked for now and then, in measured micro-batches 4, 16, 64 and so on.
    """

    def __init__(self) -> None:
        self._looked, self._wanted, self._tries = 0, 0, 0
        self._kinds: set[tuple[Any, bool]] = set()

    def rehearsed(self, *, told: bool) -> bool:
        """Count a rehearsal; return whether no other is to follow.

        Args:
            told: whether the rows at hand told what the loss divides by.
        """
        self._wanted, self._tries = max(self._wanted - 1, 0), self._tries + 1
        return told or self._tries >= _TRIES

    def wanted(self, operations: frozenset[str], gradients: Sequence[Tensor]) -> bool:
        """Return whether to rehearse before the next micro-batch.

        Args:
            operations: of a measured loss.
            gradients: at each tensor it is made of, rows first.
        """
        self._looked += 1
        silent = any(not bool(g.reshape(len(g), -1).any(1).all()) for g in gradients)
        new = (operations, silent) not in self._kinds
        self._kinds.add((operations, silent))
        if self._looked > 1:
            due = now_and_then(self._looked)
            self._wanted = max(self._wanted, _AT_ONCE if new else int(due))
        return self._wanted > 0
