"""When a domain runs out: how many rows each may still give, and what that makes of shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray, choice, number
from adaptmix.data._stream import ENDLESS
from adaptmix.solvers import neyman_shares

WAYS = ("repeat", "stop_first", "stop_all", "drop")

# Products such as 0.1 · 30 are meant to be whole.
_ROUNDING = 1e-9


class Budget:
    """How often each domain's rows may be drawn, and what happens when they are used up.

    A cap is never passed: the shares of a step are bounded by what its domains have left when the
    step is drawn, however long ago the policy proposed them. With "repeat" what is left is spread
    over the steps that are left, so that a domain with at least one row per step lasts to the end
    of the run; with the other ways a domain keeps its share until it is used up. Bounded shares
    are those of least variance within the bounds: the others keep their proportions.

    Args:
        names: of the K domains.
        sizes: (K,) rows of each.
        when_exhausted: "repeat": its rows come again, in a new order, up to ``max_epochs``;
            "stop_first": the run ends before the first step that would take a domain past
            ``max_epochs``, 1 when None; "stop_all": rows come again until every domain has been
            through once, and then the run ends; "drop": a domain ends after ``max_epochs``, 1 when
            None, and the others go on until less than a batch is left.
        max_epochs: how often each row of a domain may be drawn, for all domains or by name; a
            domain that is not named has no limit, or the default of ``when_exhausted``.

    Raises:
        TypeError: a limit that is no number.
        ValueError: another way, an unknown domain, or a limit below one row.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: NDArray[np.int64],
        *,
        when_exhausted: str = "repeat",
        max_epochs: Mapping[str, float] | float | None = None,
        streams: Sequence[int] = (),
    ) -> None:
        self.way = choice("when_exhausted", when_exhausted, WAYS)
        if self.way != "repeat":  # where a stream ends, reading it will tell
            sizes = sizes.copy()
            sizes[list(streams)] = ENDLESS
        self._names, self._sizes = names, sizes
        default = 1.0 if self.way in ("stop_first", "drop") else np.inf
        epochs = _by_name(names, max_epochs, default)
        # The epochs of each domain, infinite where there is no limit.
        self.max_epochs: FloatArray = epochs
        self._refuse_endless()
        self._limits: FloatArray = np.floor(epochs * sizes + _ROUNDING)
        if (self._limits < 1.0).any():
            short = int((self._limits < 1.0).argmax())
            raise ValueError(
                f"max_epochs must allow at least one row of each domain; got {epochs[short]:g} for "
                f"{names[short]!r}, which has {sizes[short]} rows. Leave the domain out instead."
            )
        self.limited = bool(np.isfinite(self._limits).any())

    def _refuse_endless(self) -> None:
        """Refuse limits that cannot be kept before the end of a stream is known."""
        early = (self.max_epochs < 1.0) | ((self.way == "repeat") & np.isfinite(self.max_epochs))
        if (unknown := early & (self._sizes == ENDLESS)).any():
            name = self._names[int(unknown.argmax())]
            raise ValueError(
                f"sizes must have the number of rows of stream {name!r}, so that its share can be "
                f"bounded; got max_epochs={self.max_epochs[int(unknown.argmax())]:g} without it. "
                f'Use Mixture(..., sizes={{{name!r}: rows}}), or when_exhausted="drop" and whole '
                "epochs."
            )

    def with_sizes(self, sizes: Mapping[int, int]) -> Budget:
        """Return the same limits where some domains were found to have another number of rows.

        Args:
            sizes: rows of a domain, by its number.
        """
        other = copy(self)
        other._sizes = self._sizes.copy()
        other._sizes[list(sizes)] = list(sizes.values())
        other._limits = np.floor(self.max_epochs * other._sizes + _ROUNDING)
        return other

    def __bool__(self) -> bool:
        """Whether anything may ever end."""
        return self.limited or self.way == "stop_all"

    @property
    def bounds(self) -> bool:
        """Whether shares are bounded by what is left."""
        return self.limited and self.way != "stop_first"

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run goes on, in plain values."""
        return {"when_exhausted": self.way, "max_epochs": self.max_epochs.tolist()}

    def check(self, drawn: NDArray[np.int64], rows: int) -> None:
        """Check that a run's remaining ``rows`` are there, given the (K,) rows drawn before.

        Raises:
            ValueError: they are not, with "repeat"; the other ways end the run.
        """
        left = float(self._left(drawn).sum())
        if self.way == "repeat" and left < rows:
            raise ValueError(
                f"max_epochs must allow the {rows} rows that are to be trained; got {left:.0f}. "
                'Raise it, train fewer steps, or use when_exhausted="drop", which ends the run '
                "when less than a batch is left."
            )

    def _left(self, drawn: NDArray[np.int64]) -> FloatArray:
        """Return (K,) rows that are left; a limit may be lower than it was in a resumed run."""
        left: FloatArray = np.maximum(self._limits - drawn, 0.0)
        return left

    def spent(self, drawn: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return (K,) which domains are used up, given the (K,) rows drawn; None where none is."""
        if not self.bounds:
            return None
        spent: NDArray[np.bool_] = drawn >= self._limits
        return spent if spent.any() else None

    def shares(
        self, shares: FloatArray, drawn: NDArray[np.int64], *, size: int, steps: int
    ) -> FloatArray | None:
        """Return the (K,) shares of the next step; None where the run ends before it.

        Args:
            shares: (K,) that were published for it.
            drawn: (K,) rows drawn before it.
            size: rows of the step.
            steps: steps of the run that are left, with this one.
        """
        if self.way == "stop_all" and (drawn >= self._sizes).all():
            return None
        if not self.bounds:
            return shares
        left = self._left(drawn)
        if self.way == "repeat":
            left = left / max(steps, 1)
        most = left / size
        if (shares <= most).all():
            return shares
        # Less than a batch is left, or none of what a batch would be made of.
        few = np.minimum(most, 1.0).sum() < 1.0 - _ROUNDING
        if few or not ((shares > 0.0) & (most > 0.0)).any():
            return None
        return neyman_shares(shares, upper=np.minimum(most, 1.0))

    def allows(self, drawn: NDArray[np.int64]) -> bool:
        """Return whether a run goes on that has drawn so many rows of each domain, (K,)."""
        return self.way != "stop_first" or bool((drawn <= self._limits).all())

    def listed(self, domains: NDArray[np.bool_]) -> str:
        """Return the names and epochs of some of the domains."""
        return ", ".join(
            f"{self._names[i]!r} ({self.max_epochs[i]:g})" for i in np.flatnonzero(domains).tolist()
        )


def _by_name(
    names: Sequence[str], given: Mapping[str, float] | float | None, default: float
) -> FloatArray:
    """Return (K,) epochs."""
    if not isinstance(given, Mapping):
        every = default if given is None else number("max_epochs", given, minimum=0.0, strict=True)
        return np.full(len(names), every)
    epochs = np.full(len(names), default)
    places = {name: place for place, name in enumerate(names)}
    for name, value in given.items():
        if name not in places:
            raise ValueError(
                f"max_epochs must name domains of the mixture; got {name!r}. The domains are "
                f"{', '.join(names)}."
            )
        epochs[places[name]] = number(f"max_epochs[{name!r}]", value, minimum=0.0, strict=True)
    return epochs
