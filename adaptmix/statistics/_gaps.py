"""What is missing from statistics, in words."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from adaptmix._types import Domains, DomainStats
from adaptmix._warn_once import WarnOnce
from adaptmix.errors import CoverageWarning, NoiseWarning, UnseenDomainWarning
from adaptmix.probe._coverage import Coverage

_COVERAGE_EXPECTED = 0.9


def warn_of_coverage(found: Coverage, *, required: float, warn: WarnOnce) -> bool:
    """Return whether gradient statistics are of so much of the gradient.

    Warns:
        CoverageWarning: once, when they are not, or of less than 0.9 of it.
    """
    trusted = found.least >= required
    if not trusted or found.least < _COVERAGE_EXPECTED:
        enough = math.floor(100.0 * found.least) / 100.0
        stay = f"stay as they are; min_coverage={enough:g} would move them on what is seen"
        follows = f"Weights {'move all the same, as min_coverage allows' if trusted else stay}"
        warn(
            CoverageWarning,
            f"{found.describe()} Gradient variances come out too small. {follows}. A type of "
            "layer that hides its operations gets a rule by adaptmix.register_rule.",
        )
    return trusted


def warn_of_gaps(
    stats: DomainStats, domains: Domains, *, in_sample: NDArray[np.bool_], warn: WarnOnce
) -> None:
    """Warn of domains that were not seen, or whose noise is no longer out of sample.

    Args:
        stats: the running estimates.
        domains: that they are of.
        in_sample: (K,) whether noise is read, and told by rows that are trained on alone.
        warn: of the run.
    """
    # Where nothing adapts, a domain that does not count is not drawn.
    unseen = np.flatnonzero((stats.seen == 0) & (domains.importance > 0.0))
    if unseen.size:
        warn(
            UnseenDomainWarning,
            f"{unseen.size} of {len(domains)} domains were not sampled yet (the first is "
            f"{domains.names[unseen[0]]!r}); they get the others' mean statistics.",
        )
    repeating = np.flatnonzero((stats.seen > domains.sizes) & in_sample)
    if repeating.size:
        warn(
            NoiseWarning,
            f"Domain {domains.names[repeating[0]]!r} repeats: its noise is kept as estimated in "
            "the first pass, for fitted rows look less noisy than they are. Leave holdout at "
            '"auto", or pass terms of rows of your own to controller.record_noise(noise, domain).',
        )
