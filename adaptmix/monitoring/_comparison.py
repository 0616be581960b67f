"""What a group of runs gained over another, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix.monitoring._groups import (
    Estimate,
    Group,
    normal_quantile,
    over_seeds,
    student_quantile,
)
from adaptmix.monitoring._record import RunRecord, Series, values_at

# Another order of the rows alone moves a held-out loss by up to this share.
RESHUFFLED = 0.01
# Importance is a share of one; that of two runs may differ in its last digits.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Outcome:
    """One held-out loss, before and after.

    Attributes:
        before: of the baseline.
        after: of the group that is judged.
        change: after − before; below 0 is better.
        step: optimizer steps at which both were evaluated.
        reached: the step at which the judged group had the baseline's loss; None if it never had.
    """

    before: Estimate
    after: Estimate
    change: Estimate
    step: int
    reached: float | None

    @property
    def threshold(self) -> float:
        """A change by less is no difference."""
        change = self.change
        return change.margin if change.sure else RESHUFFLED * abs(self.before.value)

    @property
    def sign(self) -> int:
        """−1 when better, 1 when worse, 0 when no difference is shown."""
        change = self.change.value
        return int(np.sign(change)) if abs(change) > self.threshold else 0

    @property
    def saved(self) -> float:
        """Share of the steps that the baseline's loss was reached earlier by; 0 if it was not."""
        return 0.0 if self.reached is None else max(1.0 - self.reached / self.step, 0.0)


@dataclass(frozen=True)
class Comparison:
    """A group against the baseline.

    Attributes:
        baseline: the group compared with.
        judged: the group that is judged.
        objective: the mean over domains by importance; None when it was not evaluated in both, or
            is not the same in both.
        domains: {domain: outcome} of those evaluated in both.
    """

    baseline: Group
    judged: Group
    objective: Outcome | None
    domains: dict[str, Outcome]

    @property
    def worse(self) -> list[str]:
        """Domains whose held-out loss is shown to be higher."""
        return [name for name, outcome in self.domains.items() if outcome.sign > 0]


def compare(baseline: Group, judged: Group) -> Comparison:
    """Return what the held-out losses of two groups tell.

    The domains' intervals hold together: among twenty, one of 95 % would be wrong by chance.
    """
    objective = None
    if same_objective(baseline.runs + judged.runs):
        objective = _outcome(baseline, judged, RunRecord.heldout, _objective_error)
    run = judged.first
    counted = [name for name, pi in zip(run.domains, run.importance, strict=True) if pi > 0.0]
    domains = {}
    for name in counted:
        outcome = _outcome(baseline, judged, _curve(name), _error(name), together=len(counted))
        if outcome is not None:
            domains[name] = outcome
    return Comparison(baseline, judged, objective, domains)


def same_objective(runs: Sequence[RunRecord]) -> bool:
    """Return whether all runs weight the same domains alike."""
    weights = [dict(zip(run.domains, run.importance, strict=True)) for run in runs]
    return all(
        one.keys() == weights[0].keys()
        and all(abs(pi - weights[0][name]) < _ROUNDING for name, pi in one.items())
        for one in weights
    )


def _curve(name: str) -> Callable[[RunRecord], Series | None]:
    return lambda run: run.of("heldout_loss").get(name)


def _error(name: str) -> Callable[[RunRecord, int], float]:
    return lambda run, step: _at(run.of("heldout_loss_error").get(name), step)


def _objective_error(run: RunRecord, step: int) -> float:
    """Return the standard error of the mean over domains, whose rows are independent."""
    counted = run.importance > 0.0
    errors = [
        _error(name)(run, step) for name, own in zip(run.domains, counted, strict=True) if own
    ]
    return float(np.linalg.norm(run.importance[counted] * np.array(errors)))


def _at(series: Series | None, step: int) -> float:
    if series is None or step not in series.steps:
        return float("nan")
    return float(series.values[np.searchsorted(series.steps, step)])


def _outcome(
    baseline: Group,
    judged: Group,
    curve: Callable[[RunRecord], Series | None],
    error: Callable[[RunRecord, int], float],
    *,
    together: int = 1,
) -> Outcome | None:
    before, after = ([curve(run) for run in group.runs] for group in (baseline, judged))
    steps = common_steps([*before, *after])
    if steps is None:
        return None
    last = int(steps[-1])
    old, new = (
        np.array([values_at(series, steps) for series in group if series is not None])
        for group in (before, after)
    )
    if len(old) == len(new) == 1:
        errors = error(baseline.first, last), error(judged.first, last)
        margin = float(normal_quantile(together) * np.hypot(*errors))
        source = "rows" if np.isfinite(margin) else ""
        change = Estimate(float(new[0, -1] - old[0, -1]), margin, source)
    else:
        paired = _same_seeds(baseline, judged)
        change = _change(old[:, -1], new[:, -1], paired=paired, together=together)
    return Outcome(
        _level(old, baseline, error, last),
        _level(new, judged, error, last),
        change,
        last,
        steps_to_reach(Series(steps, new.mean(0)), float(old[:, -1].mean())),
    )


def common_steps(curves: list[Series | None]) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """Return the (N,) steps that all series have; None when there is none."""
    known = [series for series in curves if series is not None]
    if len(known) < len(curves) or not known:
        return None
    steps = known[0].steps
    for series in known[1:]:
        steps = np.intersect1d(steps, series.steps)
    return steps if steps.size else None


def _level(
    values: FloatArray, group: Group, error: Callable[[RunRecord, int], float], step: int
) -> Estimate:
    if len(values) > 1:
        return over_seeds([float(value) for value in values[:, -1]])
    margin = normal_quantile(1) * error(group.first, step)
    return Estimate(float(values[0, -1]), margin, "rows" if np.isfinite(margin) else "")


def _same_seeds(baseline: Group, judged: Group) -> bool:
    seeds = baseline.seeds
    return len(set(seeds)) == len(seeds) and sorted(map(str, seeds)) == sorted(
        map(str, judged.seeds)
    )


def _change(old: FloatArray, new: FloatArray, *, paired: bool, together: int) -> Estimate:
    """Return the difference of means with Student's or Welch's 95 % interval.

    Args:
        old: (R,) one loss per run.
        new: (S,) likewise.
        paired: whether equal places are of equal seeds; then R = S.
        together: as for ``over_seeds``.

    Source:
        Welch, The generalization of "Student's" problem (1947).
    """
    if paired:
        return over_seeds([float(change) for change in new - old], together=together)
    value = float(new.mean() - old.mean())
    if min(len(old), len(new)) < 2:
        # One of the groups has no spread of its own: it is taken to have the other's.
        more = new if len(new) > 1 else old
        error = more.std(ddof=1) * np.sqrt(1.0 / len(old) + 1.0 / len(new))
        quantile = student_quantile(len(more) - 1, together)
        return Estimate(value, quantile * float(error), "seeds")
    parts = np.array([old.var(ddof=1) / len(old), new.var(ddof=1) / len(new)])
    if not parts.any():
        return Estimate(value, 0.0, "seeds")
    freedom = parts.sum() ** 2 / (parts**2 / (np.array([len(old), len(new)]) - 1)).sum()
    quantile = student_quantile(freedom, together)
    return Estimate(value, quantile * float(np.sqrt(parts.sum())), "seeds")


def steps_to_reach(curve: Series, target: float) -> float | None:
    """Return when a curve first reaches ``target``, interpolated; None if it never does."""
    below = np.flatnonzero(curve.values <= target)
    if not below.size:
        return None
    i = int(below[0])
    if i == 0:
        return float(curve.steps[0])
    passed = (curve.values[i - 1] - target) / (curve.values[i - 1] - curve.values[i])
    return float(curve.steps[i - 1] + passed * (curve.steps[i] - curve.steps[i - 1]))
