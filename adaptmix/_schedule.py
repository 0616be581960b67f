"""Weights of domains as a function of the optimizer step, which is known before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray, choice, integer, vector
from adaptmix._simplex import normalise
from adaptmix._types import Weights

_WAYS = ("step", "linear")


@dataclass(frozen=True, init=False, eq=False)
class Schedule:
    """Weights of domains that change at given optimizer steps.

    With ``Mixture(importance=)`` the objective changes, and the shares of rows in proportion to it.
    With ``Controller(sampling=)`` the shares change alone. The weights of a step depend on its
    number only, so they are exact with any number of workers and after a resume.

    Args:
        stages: weights of all domains by name, for each step at which a stage begins; one begins
            at step 0. Each stage is scaled to sum to one.
        interpolate: "step": a stage holds until the next one. "linear": weights move to the next
            stage in a straight line. The last stage holds to the end.

    Raises:
        TypeError: stages that do not map steps to mappings.
        ValueError: no stage at step 0, stages of different domains, or weights that are negative,
            or all 0.

    Example:
        >>> stages = {0: {"web": 0.8, "code": 0.2}, 100: {"web": 0.5, "code": 0.5}}
        >>> schedule = Schedule(stages, interpolate="linear")
        >>> schedule.at(50).round(2).tolist(), schedule.at(1000).tolist()
        ([0.65, 0.35], [0.5, 0.5])
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    weights: FloatArray
    interpolate: str

    def __init__(
        self, stages: Mapping[int, Mapping[str, float]], *, interpolate: str = "step"
    ) -> None:
        if not isinstance(stages, Mapping) or not all(
            isinstance(stage, Mapping) for stage in stages.values()
        ):
            raise TypeError(
                "stages must map steps to weights by name, as in Schedule({0: {'web': 0.8, "
                f"'code': 0.2}}); got {stages!r}."
            )
        steps = sorted(integer("stages", step, minimum=0) for step in stages)
        if not steps or steps[0]:
            raise ValueError(f"stages must begin at step 0; got steps {steps}.")
        names = tuple(map(str, stages[0]))
        rows = []
        for step in steps:
            stage = {str(name): weight for name, weight in stages[step].items()}
            if set(stage) != set(names):
                raise ValueError(
                    f"stages must name the same domains, {', '.join(names)}; got "
                    f"{', '.join(stage)} at step {step}. Give a domain that is not there 0."
                )
            ordered = vector(f"stages[{step}]", [stage[name] for name in names], minimum=0.0)
            rows.append(normalise(ordered))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "steps", tuple(steps))
        object.__setattr__(self, "weights", np.stack(rows))
        object.__setattr__(self, "interpolate", choice("interpolate", interpolate, _WAYS))

    def of(self, names: Sequence[str], *, what: str) -> Schedule:
        """Return the same schedule with domains in the order of ``names``.

        Raises:
            ValueError: it is of other domains.
        """
        if set(names) != set(self.names):
            raise ValueError(
                f"{what} must name every domain, {', '.join(names)}; got a schedule of "
                f"{', '.join(self.names)}."
            )
        order = [self.names.index(name) for name in names]
        stages = zip(self.steps, self.weights[:, order].tolist(), strict=True)
        return Schedule(
            {step: dict(zip(names, stage, strict=True)) for step, stage in stages},
            interpolate=self.interpolate,
        )

    def at(self, step: int) -> FloatArray:
        """Return the (K,) weights that hold at a step, in the order of ``names``."""
        after = int(np.searchsorted(self.steps, step, side="right"))
        before: FloatArray = self.weights[after - 1]
        if self.interpolate == "step" or after == len(self.steps):
            return before
        start, stop = self.steps[after - 1], self.steps[after]
        part = (step - start) / (stop - start)
        between: FloatArray = (1.0 - part) * before + part * self.weights[after]
        return between

    @property
    def mean(self) -> FloatArray:
        """(K,) mean of the stages, positive for each domain that is weighted at any time."""
        mean: FloatArray = self.weights.mean(axis=0)
        return mean

    @property
    def settings(self) -> dict[str, Any]:
        """What it is, in plain values."""
        return {
            "steps": list(self.steps),
            "weights": self.weights.tolist(),
            "interpolate": self.interpolate,
        }


class Course:
    """What schedules make of a run's weights, step by step.

    A policy goes by the mean of each schedule. At a step, importance is what the schedule says,
    and a domain's weight in the objective and its share change in the same proportion.

    Args:
        names: of the domains.
        importance: of the objective; as the policy has it when None.
        sampling: of the shares, or the same shares at all steps; the policy's when None.

    Raises:
        TypeError: ``sampling`` of another kind.
        ValueError: schedules of other domains.
    """

    def __init__(
        self,
        names: Sequence[str],
        importance: Schedule | None,
        sampling: Schedule | Mapping[str, float] | None,
    ) -> None:
        if isinstance(sampling, Mapping):
            sampling = Schedule({0: sampling})
        if sampling is not None and not isinstance(sampling, Schedule):
            raise TypeError(
                "sampling must be a Schedule, or shares by name; got "
                f"{type(sampling).__name__}. A policy with fixed shares is policies.Static."
            )
        self._names = tuple(names)
        self._importance = importance
        self._sampling = None if sampling is None else sampling.of(names, what="sampling")

    def __bool__(self) -> bool:
        """Whether anything is scheduled."""
        return self._importance is not None or self._sampling is not None

    @property
    def shares(self) -> FloatArray | None:
        """(K,) mean shares, in place of the policy's; None where these hold."""
        return None if self._sampling is None else self._sampling.mean

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run goes on, in plain values."""
        both = {"importance_schedule": self._importance, "sampling_schedule": self._sampling}
        return {name: None if part is None else part.settings for name, part in both.items()}

    def factors(self, step: int) -> FloatArray:
        """Return (K,) what shares are multiplied by at a step, before they sum to one."""
        schedule = self._importance if self._sampling is None else self._sampling
        return np.ones(len(self._names)) if schedule is None else _change(schedule, step)

    def check(self, weights: Weights, *, horizon: int) -> None:
        """Check before training that no stage of a run leaves out a domain that counts.

        Args:
            weights: of the policy.
            horizon: optimizer steps of the whole run.

        Raises:
            ValueError: a stage does.
        """
        for step in () if self._sampling is None else self._sampling.steps:
            if step < horizon:
                self.at(step, weights)

    def at(self, step: int, weights: Weights) -> Weights:
        """Return the weights of a step, given those of the policy.

        Raises:
            ValueError: shares of 0 for a domain that counts.
        """
        if not self:
            return weights
        importance, objective = weights.importance, weights.objective
        if self._importance is not None:
            importance = self._importance.at(step)
            objective = normalise(objective * _change(self._importance, step))
        sampling = normalise(weights.sampling * self.factors(step))
        if (lost := (sampling == 0.0) & (objective > 0.0)).any():
            name = self._names[int(lost.argmax())]
            raise ValueError(
                f"sampling must be > 0 for {name!r}, which counts; got 0 at step {step}. Give it a "
                "small share."
            )
        return Weights(sampling, None, importance, objective=objective)


def _change(schedule: Schedule, step: int) -> FloatArray:
    """Return the weights of a step relative to the mean ones; 1 where a domain has none at all."""
    mean = schedule.mean
    return np.divide(schedule.at(step), mean, out=np.ones_like(mean), where=mean > 0.0)
