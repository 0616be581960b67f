"""How much quieter a group's gradients were, or could have been."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptmix.monitoring._groups import Estimate, Group, over_seeds
from adaptmix.monitoring._record import RunRecord

# A change of the variance by less is none.
NO_DIFFERENCE = 0.02
# A smaller gain is not worth the machinery.
WORTH_IT = 1.05
_TWO_SIDED = 1.96


@dataclass(frozen=True)
class Gains:
    """Gradient variance under proportional sampling over that under other shares.

    Attributes:
        predicted: with the best shares, with what noise alone would predict taken off.
        proposed: with the shares that the policy proposes.
        attained: with the shares in force; NaN where other domains lend something, for then
            a quieter gradient is not what the shares are for.
        lent: share of the gradient's mean squared error that other domains take away; NaN where
            no policy tells it.
    """

    predicted: Estimate
    proposed: float
    attained: float
    lent: float = float("nan")

    @property
    def known(self) -> bool:
        """Whether gradients were measured."""
        return bool(np.isfinite(self.predicted.value))

    @property
    def nothing_to_gain(self) -> bool:
        """Whether even the best shares would hardly make gradients quieter."""
        estimate = self.predicted
        return self.known and (estimate.high if estimate.sure else estimate.value) < WORTH_IT

    @property
    def worth_it(self) -> bool:
        """Whether the gain is shown to be more than nothing, and enough."""
        low = self.predicted.low if self.predicted.sure else self.predicted.value
        return self.known and low > 1.0 + NO_DIFFERENCE and self.predicted.value >= WORTH_IT


def gains(group: Group) -> Gains:
    """Return a group's gains, each the median over the second half of a run."""
    proposed = _mean([run.settled("proposed_gain") for run in group.runs if _measured(run)])
    attained = _mean([_attained(run) for run in group.runs if _measured(run)])
    lent = _mean([_lent(run) for run in group.runs])
    return Gains(_predicted(group), proposed, float("nan") if lent >= 0.0 else attained, lent)


def _attained(run: RunRecord) -> float:
    """Return one run's attained gain, less the part that noise alone would predict.

    Shares that attain what is predicted were chosen by the same noise as the prediction; those of
    proportional sampling were not.
    """
    attained, predicted = run.attained_gain, run.settled("predicted_gain")
    bias = run.settled("predicted_gain_bias")
    if not (bias > 0.0 and attained > 1.0 and predicted > 1.0):
        return attained
    chosen = min((attained - 1.0) / (predicted - 1.0), 1.0)
    return max(attained - bias * chosen, 1.0)


def _lent(run: RunRecord) -> float:
    helps = run.final("helps")
    return float(np.nansum(helps)) if np.isfinite(helps).any() else float("nan")


def _predicted(group: Group) -> Estimate:
    singles = [_single(run) for run in group.runs if _measured(run)]
    if len(singles) == 1:
        return singles[0]
    return over_seeds([single.value for single in singles])


def _single(run: RunRecord) -> Estimate:
    """Return one run's prediction; its interval comes from the statistics' standard errors."""
    if "predicted_gain_error" not in run.overall:
        return Estimate(run.settled("predicted_gain"))
    bias = run.settled("predicted_gain_bias")
    value = max(run.settled("predicted_gain") - bias, 1.0)
    return Estimate(value, _TWO_SIDED * run.settled("predicted_gain_error"), "estimates")


def _measured(run: RunRecord) -> bool:
    return bool(run.of("grad_std"))


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
