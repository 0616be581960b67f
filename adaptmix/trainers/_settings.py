"""The arguments that all callbacks have, checked where they are written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from adaptmix._schedule import Schedule
from adaptmix._types import Domains
from adaptmix.controller import Controller
from adaptmix.data import Layout, Mixture, prefetching
from adaptmix.policies import Policy

# Rows of each domain of the controller that checks arguments, enough for a small ``max_epochs``.
_ROWS = 10**5
_log = logging.getLogger("adaptmix")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments that every callback has; those of ``Controller`` are checked at once.

    Args:
        domains: a column's name, one label per row, or None for a dataset of several parts.
        policy: as for ``Controller``.
        importance: how much each domain matters, by name.
        unit: "sample", "token", or None for what the trainer averages over.
        head: name of the module at whose output rows are weighted, or None.
        lag: as for ``Controller``; None to choose by the loader's workers.
        seed: as for ``Controller``; None for the trainer's.
        mode: "adapt" or "observe".
        tokens_per_row: as for ``Controller``.
        options: further arguments of ``Controller``, by name.

    Raises:
        TypeError: an argument of the wrong kind, or one that ``Controller`` does not have.
        ValueError: an argument out of its range.
    """

    domains: str | Iterable[Any] | None = None
    policy: Policy | str = "variance_aware"
    importance: Mapping[str, float] | Schedule | None = None
    unit: str | None = None
    head: str | None = None
    lag: int | None = None
    seed: int | None = None
    mode: str = "adapt"
    tokens_per_row: Mapping[str, float] | Callable[[Any], Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Build a controller of two small domains, so that wrong arguments fail here."""
        if isinstance(self.domains, Domains):
            raise TypeError(
                "domains must be a column's name, one label per row, or None, for a trainer's rows "
                "are drawn by index; got Domains. Rows of somebody else's loader need a loop of "
                "your own, with Controller(Domains(...))."
            )
        if isinstance(self.domains, bytes) or not (
            self.domains is None or isinstance(self.domains, Iterable)
        ):
            raise TypeError(
                "domains must be a column's name, one label per row, or None; got "
                f"{type(self.domains).__name__}."
            )
        if isinstance(self.domains, Iterator):  # labels are read once for each run
            object.__setattr__(self, "domains", list(self.domains))
        own = {each.name for each in fields(self)} & set(self.options)
        if own:
            raise TypeError(
                f"options must be further arguments of Controller; got {', '.join(sorted(own))}. "
                "Pass it to Settings itself."
            )
        if self.head is not None and not isinstance(self.head, str):
            raise TypeError(f"head must be a module's name; got {type(self.head).__name__}.")
        if self.head is not None and self.unit not in (None, "sample"):
            raise ValueError(
                f'unit must be "sample" with head={self.head!r}, where rows are weighted and not '
                f"their tokens; got {self.unit!r}. Leave unit out."
            )
        told = self.tokens_per_row if isinstance(self.tokens_per_row, Mapping) else {}
        # Domains are not known yet, but where a mapping names them.
        named = [self.importance, told, self.options.get("sampling")]
        limits = self.options.get("max_epochs")
        names = next(filter(None, map(_names, named)), [*_names(limits), "a", "b"])
        known = bool(self.importance or told)
        # A policy of one's own may be of certain domains.
        free = isinstance(self.policy, str) or not hasattr(self.policy, "update")
        unit = self.unit or ("token" if callable(self.tokens_per_row) else None)
        with _without_log():
            self.make_controller(
                Mixture(dict.fromkeys(names, range(_ROWS)), importance=self.importance),
                lag=16 if self.lag is None else self.lag,
                seed=0 if self.seed is None else self.seed,
                unit=unit or ("token" if max(told.values(), default=0.0) > 1.0 else "sample"),
                policy=self.policy if free or known else "static",
                tokens_per_row=self.tokens_per_row,
            )

    def make_controller(
        self, mixture: Mixture, *, lag: int, seed: int, **changes: Any
    ) -> Controller:
        """Return a controller with these settings.

        Args:
            mixture: of the run.
            lag: of the run.
            seed: of the run.
            changes: arguments of ``Controller`` that are not as they were given.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: an argument out of its range.
        """
        given = {
            "policy": self.policy,
            "mode": self.mode,
            "unit": self.unit or "sample",
            "tokens_per_row": self.tokens_per_row,
        }
        return Controller(mixture, lag=lag, seed=seed, **(given | dict(self.options) | changes))

    def lag_for(self, loader: Any, layout: Layout) -> int:
        """Return the lag that was asked for, or one that covers a loader's workers.

        Args:
            loader: a ``DataLoader`` that the run's loader takes the place of.
            layout: how a step's batch is cut.
        """
        return layout.default_lag(**prefetching(loader)) if self.lag is None else self.lag


def _names(given: Any) -> list[str]:
    """Return the domains that an argument names, none where it names none."""
    if isinstance(given, Schedule):
        return list(given.names)
    return list(given) if isinstance(given, Mapping) else []


@contextmanager
def _without_log() -> Iterator[None]:
    """Leave out what a controller logs: the one of the run says it again."""
    before, _log.disabled = _log.disabled, True
    try:
        yield
    finally:
        _log.disabled = before
