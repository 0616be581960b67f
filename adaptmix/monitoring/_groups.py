"""Runs that differ in their seed only are one group."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from adaptmix.monitoring._record import RunRecord

_SEED_AT_END = re.compile(r"[-_. /]*(seed|s)?[-_. ]*\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Estimate:
    """A figure and how sure it is.

    Attributes:
        value: the figure; NaN when not known.
        margin: half the width of its 95 % interval; NaN when not known.
        source: what the margin comes from: "seeds", "rows", "estimates", or "" without one.
    """

    value: float
    margin: float = float("nan")
    source: str = ""

    @property
    def sure(self) -> bool:
        """Whether the interval is known."""
        return bool(np.isfinite(self.margin))

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.margin

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.margin


def over_seeds(values: Sequence[float], *, together: int = 1) -> Estimate:
    """Return mean and 95 % interval of one figure per run; no margin for a single one.

    Args:
        values: one per run, NaN where it is not known.
        together: number of intervals that shall hold together (Bonferroni).

    Source:
        Student (1908).
    """
    known = np.array([value for value in values if np.isfinite(value)])
    if known.size == 0:
        return Estimate(float("nan"))
    if known.size == 1:
        return Estimate(float(known[0]))
    error = known.std(ddof=1) / np.sqrt(known.size)
    margin = float(student_quantile(known.size - 1, together) * error)
    return Estimate(float(known.mean()), margin, "seeds")


def normal_quantile(together: int) -> float:
    """Return the quantile that ends a 95 % interval, one of several that hold together."""
    from scipy.special import ndtri  # imported when it is used

    return float(ndtri(1.0 - 0.025 / together))


def student_quantile(freedom: float, together: int) -> float:
    """Return the same of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1.0 - 0.025 / together))


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, each with its own seed.

    Attributes:
        label: what the group is called.
        runs: at least one.
    """

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        """A run that stands for what all have in common."""
        return self.runs[0]

    @property
    def observing(self) -> bool:
        """Whether its weights were only proposed."""
        return self.first.observing

    @property
    def overhead(self) -> float:
        """Time that measuring adds, as a share of the time without it; NaN where unknown."""
        known = [run.overall["overhead"].last for run in self.runs if "overhead" in run.overall]
        return float(np.mean(known)) if known else float("nan")

    @property
    def seeds(self) -> tuple[object, ...]:
        """The runs' seeds, in order."""
        return tuple(run.configuration.get("seed") for run in self.runs)


def grouped(records: Sequence[RunRecord]) -> list[Group]:
    """Return groups of runs, the baseline first: observed runs, or else the first ones given.

    Two runs of one configuration *and* one seed differ in something that the record does not know,
    such as the learning rate, so they stay apart unless they were given one label.
    """
    kinds: dict[str, list[RunRecord]] = {}
    labels = [record.label for record in records]
    for record in records:
        same_label = labels.count(record.label) > 1
        key = record.label if same_label else _configuration(record)
        seeds = {run.configuration.get("seed") for run in kinds.get(key, [])}
        known = record.configuration and record.configuration.get("seed") not in seeds
        if key in kinds and not same_label and not known:
            key = f"{key} {record.label}"
        kinds.setdefault(key, []).append(record)
    groups = [Group("", tuple(sorted(runs, key=_seed))) for runs in kinds.values()]
    groups.sort(key=lambda group: not group.observing)  # stable
    named = [_label(group) for group in groups]
    return [
        Group(name if named.count(name) == 1 else _distinct(name, group, i), group.runs)
        for i, (name, group) in enumerate(zip(named, groups, strict=True))
    ]


def _seed(record: RunRecord) -> tuple[bool, int, str]:
    seed = record.configuration.get("seed")
    return (seed is None, int(seed or 0), record.label)


def _configuration(record: RunRecord) -> str:
    own = {key: value for key, value in record.configuration.items() if key != "seed"}
    return json.dumps(own, sort_keys=True) if own else record.label


def _label(group: Group) -> str:
    labels = [run.label for run in group.runs]
    if len(set(labels)) == 1:
        return labels[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*labels, strict=False))
    common = _SEED_AT_END.sub("", "".join(letters[0] for letters in alike))
    return common or ("observed" if group.observing else group.first.policy)


def _distinct(name: str, group: Group, position: int) -> str:
    mode = "observed" if group.observing else group.first.policy
    return f"{name} ({mode}, {position + 1})"
