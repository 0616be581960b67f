"""Domains whose rows somebody else's loader draws: the shares it is told, by version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from adaptmix._changed import ELSEWHERE
from adaptmix._checks import FloatArray, integer
from adaptmix._schedule import Course
from adaptmix._simplex import normalise
from adaptmix._types import Domains
from adaptmix.data._budget import Budget
from adaptmix.data._layout import Layout
from adaptmix.data._mixture import Mixture
from adaptmix.data._rows import RowSource
from adaptmix.errors import StateError, VersionError
from adaptmix.state import _schema as schema

# Shares are known of so many versions; each is (K,) numbers in memory and in checkpoints.
KEPT = 64
# Shares add up to 1 but for rounding.
_ROUNDING = 1e-6

Listener = Callable[[int, dict[str, float]], object]
"""Takes a version and each domain's share of rows by name; what it returns is not looked at."""


class Elsewhere(Mixture):
    """A mixture of domains whose rows are not here.

    Args:
        domains: their names, sizes and importance.
    """

    def __init__(self, domains: Domains) -> None:
        self.info, self.schedule = domains, None
        # Where nobody says how many rows there are, none repeats.
        known = np.isfinite(domains.sizes)
        self._sizes = np.where(known, domains.sizes, 0.0).astype(np.int64)
        self._starts = self._firsts = np.zeros(len(domains) + 1, dtype=np.int64)
        self._order = None
        self._gaps = np.empty(0, dtype=np.int64)

    def row_source(self, *, seed: int) -> RowSource:
        """Refuse, for there are no rows to choose from."""
        refuse_rows("row_source()")

    def __repr__(self) -> str:
        return f"Elsewhere({', '.join(map(repr, self.domains))})"


def refuse_rows(what: str) -> NoReturn:
    """Refuse what needs rows.

    Raises:
        TypeError: always.
    """
    raise TypeError(
        f"{what} needs a Mixture, whose rows are here; this controller was given Domains, whose "
        "rows somebody else's loader draws. Call expect() and on_publish(), and pass "
        "draw=controller.foreign(domains, version=...) to loss()."
    )


@dataclass(frozen=True)
class Expected:
    """What batches somebody else's loader brings.

    Args:
        layout: how a global batch is cut.
        steps: optimizer steps of the whole run.
    """

    layout: Layout
    steps: int

    def __post_init__(self) -> None:
        integer("steps", self.steps, minimum=1)

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same on every process, in plain values."""
        layout = self.layout
        return {
            "batch_size": layout.batch_size,
            "accumulation": layout.accumulation,
            "steps": self.steps,
        }


class PublishedShares:
    """What stands in a plan's place where rows are drawn elsewhere: shares of rows, by version.

    Whoever listens is told each new version once, when it is published, and the newest one when it
    begins to listen. The last ``KEPT`` versions are known, here and after a resume.

    Args:
        mixture: whose rows they are shares of.
        shares: (K,) expected shares of rows until others are published.
        seed: of the run.
        course: what schedules make of shares.

    Attributes:
        budget: without limits.
        completed: optimizer steps trained.
        starts: how often training has begun.
    """

    counts = "multinomial"
    end: int | None = None
    row_seed: int | None = None

    def __init__(
        self, mixture: Mixture, *, shares: FloatArray, seed: int, course: Course | None = None
    ) -> None:
        self.mixture = mixture
        self.seed = integer("seed", seed, minimum=0)
        self.budget = Budget(mixture.domains, np.ones(len(mixture.domains), dtype=np.int64))
        self.completed = self.starts = 0
        self._course = course
        self._shares = shares
        self._versions: dict[int, FloatArray] = {0: self.shares_at(0)}
        self._listeners: list[Listener] = []

    @property
    def settings(self) -> dict[str, Any]:
        """What a run that goes on must have in common with this one, in plain values."""
        return {"seed": self.seed, "counts": self.counts, "row_source": ELSEWHERE}

    @property
    def untouched(self) -> bool:
        """Whether nothing was drawn yet."""
        return not (self.starts or self.completed)

    @property
    def newest(self) -> int:
        """The version published last."""
        return max(self._versions)

    def shares_at(self, step: int, *, held: int = 0) -> FloatArray:
        """Return the (K,) shares of rows that are asked for at a step."""
        factors = self._course.factors(step) if self._course else 1.0
        return normalise(self._shares * factors)

    def advance(self) -> None:
        """Count one more trained step."""
        self.completed += 1
        self._renew()

    def publish(self, shares: FloatArray, *, between_steps: bool = True) -> None:
        """Tell new (K,) shares of rows, unless they are the newest ones."""
        self._shares = shares
        self._renew()

    def _renew(self) -> None:
        shares = self.shares_at(self.completed)
        if np.array_equal(shares, self._versions[self.newest]):
            return
        self._versions = {**self._versions, self.newest + 1: shares}
        for version in sorted(self._versions)[:-KEPT]:
            del self._versions[version]
        self.tell()

    def listen(self, listener: Listener) -> None:
        """Tell ``listener`` the newest shares, and each version from now on."""
        self._listeners.append(listener)
        listener(self.newest, self._named())

    def tell(self) -> None:
        """Tell the newest shares to all that listen."""
        for listener in self._listeners:
            listener(self.newest, self._named())

    def _named(self) -> dict[str, float]:
        shares = self._versions[self.newest].tolist()
        return dict(zip(self.mixture.domains, shares, strict=True))

    def of(self, versions: NDArray[np.int64], domains: NDArray[np.int64]) -> FloatArray:
        """Return the share that each row was drawn with.

        Args:
            versions: (n,) in force when the row was drawn.
            domains: (n,) of the row.

        Raises:
            VersionError: a version that is not known.
        """
        shares = np.empty(versions.size)
        for version in np.unique(versions).tolist():
            if version not in self._versions:
                self._refuse(version)
            here = versions == version
            shares[here] = self._versions[version][domains[here]]
        return shares

    def _refuse(self, version: int) -> NoReturn:
        first, last = min(self._versions), self.newest
        if version > last or version < 0:
            raise VersionError(
                f"version must be one that on_publish() was told, up to {last}; got {version}. "
                "After a resume, load the controller's state before the loader goes on; with "
                "several processes, each must listen itself."
            )
        raise VersionError(
            f"version must be one of the last {KEPT} that were published, {first} to {last}; got "
            f"{version}, whose shares are forgotten. Let the loader read less far ahead or take "
            "new shares sooner, raise update_every, or put each row's share into the batch and "
            "pass shares=."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return position and versions as plain arrays and numbers."""
        versions = sorted(self._versions)
        return {
            "completed": self.completed,
            "shares": self._shares,
            "versions": np.array(versions, dtype=np.int64),
            "version_shares": np.stack([self._versions[version] for version in versions]),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str = "plan") -> None:
        """Go back to a saved position; nobody is told before ``tell``.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        K = len(self.mixture.domains)
        fields = {
            "completed": schema.integer(),
            "shares": schema.array(K, minimum=0.0, maximum=1.0),
            "versions": schema.array(None, dtype=np.int64, minimum=0),
            "version_shares": schema.array(None, K, minimum=0.0, maximum=1.0),
        }
        saved = schema.read(state, fields, name=name)
        versions, shares = saved["versions"], saved["version_shares"]
        if not 0 < versions.size <= KEPT or (np.diff(versions) != 1).any():
            raise StateError(
                f"{name}.versions must be 1 to {KEPT} consecutive numbers; got "
                f"{versions[:8].tolist()}."
            )
        sums = np.append(shares.sum(1), saved["shares"].sum())
        if len(shares) != len(versions) or (np.abs(sums - 1.0) > _ROUNDING).any():
            raise StateError(
                f"{name}.version_shares must have {len(versions)} rows that sum to 1; got "
                f"{len(shares)} with sums {sums[:8].tolist()}."
            )
        self.completed, self._shares = saved["completed"], saved["shares"]
        self._versions = dict(zip(versions.tolist(), shares, strict=True))
        self.starts += 1
