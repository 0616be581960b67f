"""The errors and warnings adaptmix raises beyond plain ``ValueError`` and ``TypeError``."""

from __future__ import annotations

__all__ = [
    "AdaptMixWarning",
    "BatchOrderError",
    "CollapseWarning",
    "CoverageWarning",
    "ExhaustedLoaderWarning",
    "FreshStartWarning",
    "LagError",
    "LengthGroupingWarning",
    "LoggingWarning",
    "LossShapeWarning",
    "LossWeightWarning",
    "MissingStatisticError",
    "MissingStatisticWarning",
    "NoiseWarning",
    "NonFiniteWarning",
    "ObjectiveError",
    "PackingWarning",
    "ProcessMismatchError",
    "RealisedSharesWarning",
    "RegressionWarning",
    "RepetitionWarning",
    "RowLengthWarning",
    "RowOrderWarning",
    "StateError",
    "TooFewRowsWarning",
    "UnseenDomainWarning",
    "VersionError",
]


class LagError(ValueError):
    """A loader draws a step whose shares are not known yet: it runs ahead by more than ``lag``."""


class BatchOrderError(ValueError):
    """A batch is trained out of turn, or losses cannot be matched with a batch."""


class VersionError(ValueError):
    """Rows were drawn with shares of a version that was never published, or is forgotten."""


class StateError(ValueError):
    """A saved state is damaged, or belongs to another run than the controller that loads it."""


class ProcessMismatchError(ValueError):
    """Processes that train together were built or used differently; all of them raise it."""


class MissingStatisticError(ValueError):
    """A policy needs a statistic that the run does not supply."""


class ObjectiveError(RuntimeError):
    """Training would follow another objective than the one that was stated."""


class AdaptMixWarning(UserWarning):
    """Base class of every warning AdaptMix emits, so that one filter catches them all."""


class MissingStatisticWarning(AdaptMixWarning):
    """In mode "observe" a policy proposes no weights, for a statistic is missing."""


class NonFiniteWarning(AdaptMixWarning):
    """Losses or gradients that were NaN or infinite were left out of the statistics."""


class CoverageWarning(AdaptMixWarning):
    """The gradient probe measures too little of the trainable parameters or of the gradient."""


class PackingWarning(AdaptMixWarning):
    """Rows that are packed together influence each other, or this could not be checked."""


class RowOrderWarning(AdaptMixWarning):
    """It could not be shown that a collator or a model keeps rows in the order of the draw."""


class NoiseWarning(AdaptMixWarning):
    """A domain's rows repeat, so its training residuals no longer estimate its noise."""


class UnseenDomainWarning(AdaptMixWarning):
    """A domain has not been sampled yet; its statistics are the mean of the others'."""


class RowLengthWarning(AdaptMixWarning):
    """Mean tokens per row are estimated during the run, because they were not given."""


class RealisedSharesWarning(AdaptMixWarning):
    """Rows are weighted by the shares of their micro-batch, which biases the objective."""


class ExhaustedLoaderWarning(AdaptMixWarning):
    """A loader was iterated after all of its steps had been trained."""


class TooFewRowsWarning(AdaptMixWarning):
    """The policy waits: no measured step had rows that supply the statistics it reads."""


class LengthGroupingWarning(AdaptMixWarning):
    """Grouping rows by length does nothing, because a step has only one micro-batch."""


class LoggingWarning(AdaptMixWarning):
    """Something could not be logged; training goes on without it."""


class FreshStartWarning(AdaptMixWarning):
    """A run is resumed from a checkpoint without a state of AdaptMix; statistics begin anew."""


class CollapseWarning(AdaptMixWarning):
    """One domain has nearly the whole batch, or nearly the whole objective."""


class RegressionWarning(AdaptMixWarning):
    """A domain's held-out loss has risen well above its best."""


class RepetitionWarning(AdaptMixWarning):
    """A domain's rows are drawn many times over, and far more often than other domains' rows."""


class LossShapeWarning(AdaptMixWarning):
    """Losses have a shape that broadcasting makes of predictions and targets by mistake."""


class LossWeightWarning(AdaptMixWarning):
    """A loss weight is near 0, or counts a domain several times its importance."""
