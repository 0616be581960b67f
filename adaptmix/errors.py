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
    "LossWeightWarning",
    "MissingStatisticError",
    "MissingStatisticWarning",
    "NoiseWarning",
    "NonFiniteWarning",
    "ObjectiveError",
    "PackingWarning",
    "ProcessMismatchError",
    "RegressionWarning",
    "RepetitionWarning",
    "RowLengthWarning",
    "RowOrderWarning",
    "StateError",
    "TooFewRowsWarning",
    "UnseenDomainWarning",
]


class LagError(ValueError):
    """The loader asked for a step whose shares are not published yet: it runs ahead of the lag."""


class BatchOrderError(ValueError):
    """A batch is trained out of turn, or it is not known which batch losses are of."""


class StateError(ValueError):
    """A saved state does not fit the controller that should load it."""


class ProcessMismatchError(ValueError):
    """Processes that train together do not agree; raised on every one of them."""


class MissingStatisticError(ValueError):
    """A policy needs a statistic that the run does not supply."""


class ObjectiveError(RuntimeError):
    """Training would follow another objective than the one that was stated."""


class AdaptMixWarning(UserWarning):
    """Base class of every warning AdaptMix emits, so that one filter catches them all."""


class MissingStatisticWarning(AdaptMixWarning):
    """In mode "observe" a policy proposes nothing, for the run does not supply what it needs."""


class NonFiniteWarning(AdaptMixWarning):
    """Losses or gradients that were NaN or infinite were left out of the statistics."""


class CoverageWarning(AdaptMixWarning):
    """The gradient probe sees less of the model's trainable parameters than it should."""


class PackingWarning(AdaptMixWarning):
    """Rows that are packed together see each other, or it could not be checked that they do not."""


class RowOrderWarning(AdaptMixWarning):
    """It is not known whether a batch, or the model inside, keeps rows in the order drawn."""


class NoiseWarning(AdaptMixWarning):
    """A domain repeats, so its training residuals no longer estimate out-of-sample noise."""


class UnseenDomainWarning(AdaptMixWarning):
    """A domain has not been sampled yet, so its statistics are the pooled ones."""


class RowLengthWarning(AdaptMixWarning):
    """Mean tokens per row are estimated while the run goes on, not known from its start."""


class ExhaustedLoaderWarning(AdaptMixWarning):
    """A loader was iterated after all of its steps had been trained."""


class TooFewRowsWarning(AdaptMixWarning):
    """Nothing is known yet of what the policy goes by: no row told it in an observed step."""


class LengthGroupingWarning(AdaptMixWarning):
    """Rows are to be grouped by length, but a step has one micro-batch, so all are padded alike."""


class LoggingWarning(AdaptMixWarning):
    """Something could not be logged; training goes on without it."""


class FreshStartWarning(AdaptMixWarning):
    """A run is resumed from a checkpoint that holds no state of adaptmix."""


class CollapseWarning(AdaptMixWarning):
    """One domain has nearly all of the batch, or of the objective."""


class RegressionWarning(AdaptMixWarning):
    """A domain's held-out loss has risen well above its best."""


class RepetitionWarning(AdaptMixWarning):
    """A domain's rows are drawn many times over, far more often than those of the others."""


class LossWeightWarning(AdaptMixWarning):
    """Loss weights all but switch a domain off, or make it count several times what was stated."""
