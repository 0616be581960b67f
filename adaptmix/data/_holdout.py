"""Held-out rows: a slice of each domain that is never trained on, and the batches it rides in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptmix._checks import integer
from adaptmix.data._mixture import Mixture
from adaptmix.data._permutation import Permutations
from adaptmix.data._stream import ENDLESS

FROM_HELD_OUT = frozenset({"noise", "holdout_loss"})
"""Statistics that held-out rows tell; "auto" holds rows out where a policy reads one of them."""

# "auto" holds out this share of a domain, but so many rows at least and at most.
_SHARE, _LEAST, _MOST = 0.02, 16, 2000
_OF_STREAM = 256  # and of a stream without end so many; they are kept in memory
_PART = 4  # never more than one row in so many of a domain, or of a batch
_RIDERS = 16  # one row in so many of a measured step's batch is held out, unless domains need more
_EACH = 2  # rows of each domain that ride within a half-life, if a quarter of the batch holds them


@dataclass(frozen=True, eq=False)
class HeldRows:
    """The held-out rows of one step's global batch.

    Attributes:
        rows: (h,) int64 rows of the mixture; of a stream, their number.
        domains: (h,) int64 domain of each.
    """

    rows: NDArray[np.int64]
    domains: NDArray[np.int64]

    def __len__(self) -> int:
        return self.rows.size


_NONE = HeldRows(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def holdout_sizes(
    holdout: str | float | None, sizes: NDArray[np.int64], *, needed: bool, adapting: bool = True
) -> NDArray[np.int64]:
    """Return how many rows of each domain are held out, (K,).

    Args:
        holdout: as for ``Controller``.
        sizes: (K,) rows of each domain.
        needed: whether "auto" holds any out.
        adapting: whether the run adapts, and does not only observe.

    Raises:
        TypeError: neither "auto", nor a number, nor None.
        ValueError: a share beyond (0, 0.25], or fewer than one row; or a share of a stream whose
            size is not known; or any in a run that observes.
    """
    if holdout is None or (holdout == "auto" and not needed):
        return np.zeros_like(sizes)
    if not adapting:
        raise ValueError(
            'holdout must be None or "auto" with mode="observe", which trains on all rows; got '
            f"{holdout!r}."
        )
    most = sizes // _PART
    if isinstance(holdout, str) and holdout == "auto":
        auto = np.clip(np.rint(_SHARE * sizes), _LEAST, _MOST)
        return _at_most(most, np.where(sizes == ENDLESS, _OF_STREAM, auto))
    if isinstance(holdout, bool) or not isinstance(holdout, (int, float)):
        raise TypeError(
            'holdout must be "auto", a share of each domain\'s rows, a number of them, or None; '
            f"got {holdout!r}."
        )
    if isinstance(holdout, int):
        return _at_most(most, integer("holdout", holdout, minimum=1))
    if not 0.0 < holdout <= 1.0 / _PART:
        raise ValueError(
            f"holdout must be a share in (0, {1.0 / _PART}] or a whole number of rows; got "
            f"{holdout!r}."
        )
    if (sizes == ENDLESS).any():
        raise ValueError(
            "holdout must be a number of rows where the size of a stream is not known; got a share,"
            f" {holdout!r}. Use a number, or Mixture(..., sizes={{name: rows}})."
        )
    return _at_most(most, np.maximum(np.rint(holdout * sizes), 1.0))


def _at_most(most: NDArray[np.int64], wanted: ArrayLike) -> NDArray[np.int64]:
    least: NDArray[np.int64] = np.minimum(most, np.asarray(wanted, dtype=np.int64))
    return least


class Holdout:
    """Which rows are held out, and which of them ride in the batch of a measured step.

    In every measured step a sixteenth of the global batch is held-out rows; more, up to a quarter,
    where otherwise not two rows of each domain would ride within a half-life. The domains take
    turns, and so do the rows of each. All of it follows from the step's number. Of a stream its
    first rows are held out.

    Args:
        mixture: all rows.
        sizes: (K,) how many rows of each domain are held out.
        seed: of the choice.
        every: optimizer steps between measured ones.
        half_life: of the statistics, in optimizer steps.
    """

    def __init__(
        self,
        mixture: Mixture,
        sizes: NDArray[np.int64],
        *,
        seed: int,
        every: int,
        half_life: float,
    ) -> None:
        seed = integer("seed", seed, minimum=0)
        self.sizes = sizes
        self._every = every
        self._turns = np.flatnonzero(sizes)
        domains = np.repeat(self._turns, sizes[self._turns])
        self._firsts = np.concatenate([[0], np.cumsum(sizes[self._turns])])
        places = np.arange(domains.size) - np.repeat(self._firsts[:-1], sizes[self._turns])
        # An order of all rows that no epoch has.
        orders = Permutations(mixture.sizes, seed=seed, names=mixture.domains)
        order = orders(domains, np.full_like(domains, -1), places)
        self._rows = places
        stored = ~np.isin(domains, list(mixture.streams))
        self._rows[stored] = mixture.rows_of(domains[stored], order[stored])
        first = {number: int(sizes[number]) for number in mixture.streams}
        self.training = mixture.without(self._rows[stored], first) if domains.size else mixture
        self._needed = int(np.ceil(_RIDERS * _EACH * self._turns.size * every / half_life))

    @classmethod
    def nothing(cls, mixture: Mixture) -> Holdout:
        """Return a holdout without rows."""
        return cls(mixture, np.zeros_like(mixture.sizes), seed=0, every=1, half_life=1.0)

    def __bool__(self) -> bool:
        return bool(self._turns.size)

    def check(self, size: int) -> None:
        """Check that a global batch of ``size`` rows has room for one that is held out.

        Raises:
            ValueError: it has only one row.
        """
        if self and size < 2:
            raise ValueError(
                "batch_size × processes × accumulation must be at least 2 where held-out rows "
                f"ride in the batch; got {size}. Use holdout=None, or a larger batch."
            )

    def of_step(self, step: int, size: int) -> HeldRows:
        """Return the held-out rows among the ``size`` rows of a step."""
        if not self or (step + 1) % self._every:
            return _NONE
        number = (step + 1) // self._every
        slots = np.arange(self._ridden(number - 1, size), self._ridden(number, size))
        turns, places = np.divmod(slots, self._turns.size)
        domains = self._turns[places]
        return HeldRows(self._rows[self._firsts[places] + turns % self.sizes[domains]], domains)

    def _ridden(self, measured: int, size: int) -> int:
        """Return how many held-out rows rode in the first so many measured steps."""
        sixteenths = min(max(size, self._needed), size * _RIDERS // _PART)
        return measured * sixteenths // _RIDERS
