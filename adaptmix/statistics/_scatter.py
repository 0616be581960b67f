"""How much one row's squared gradient norm differs from another's, whatever both drift by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix.state import _schema as schema
from adaptmix.statistics._discounted import DiscountedSums, ratio

# Successive differences share a step with their neighbours, so that n of them tell a variance as
# n / 1.5 independent ones do.
_SHARED = 1.5


class SquareScatter:
    """Relative variance r = Var ‖g‖² / s⁴ of one row's squared gradient norm, by domain.

    Gradients shrink by orders of magnitude while a model learns. The variance of step means about
    their mean over time would take that for scatter. So each step is compared with the one before
    it: for means y, y′ of n, n′ rows,

        E (y − y′)² / (1/n + 1/n′) = Var ‖g‖²,        E y y′ = s⁴,

    up to the square of what s² changes by between the two. r is the ratio of their sums. Each pair
    is divided by the square of what was known of s² *before* it, so that all steps count alike,
    however large their gradients, and no pair is weighted by its own noise.

    Args:
        num_domains: K.
        half_life: optimizer steps after which evidence counts half.

    Source:
        von Neumann, Kent, Bellinson and Hart, The mean square successive difference (1941).
    """

    def __init__(self, num_domains: int, *, half_life: float) -> None:
        K = num_domains
        self._sums = DiscountedSums(("difference", "product", "pairs"), (K,), half_life=half_life)
        self._level = DiscountedSums(("count", "square"), (K,), half_life=half_life)
        # Of the step before: its mean, its rows, and the level before it.
        self._mean, self._count, self._before = np.zeros((3, K))

    def add(self, step: int, *, count: FloatArray, square: FloatArray) -> None:
        """Add a step's (K,) rows and Σ ‖g‖² over them."""
        seen = count > 0.0
        mean = square / np.maximum(count, 1.0)
        paired = seen & (self._before > 0.0)
        scale = np.where(paired, self._before, 1.0)
        now, last = mean / scale, self._mean / scale
        unit = 1.0 / np.maximum(count, 1.0) + 1.0 / np.maximum(self._count, 1.0)
        self._sums.add(
            step,
            paired,
            difference=np.square(now - last) / unit,
            product=now * last,
            pairs=np.ones_like(count),
        )
        level = np.nan_to_num(ratio(self._level["square"], self._level["count"]))
        self._level.add(step, seen, count=count, square=square)
        self._mean = np.where(seen, mean, self._mean)
        self._count = np.where(seen, count, self._count)
        self._before = np.where(seen, level, self._before)

    @property
    def values(self) -> FloatArray:
        """(K,) r, NaN where no pair of steps told it."""
        return ratio(self._sums["difference"], self._sums["product"])

    def freedom(self, step: int) -> FloatArray:
        """Return the (K,) degrees of freedom behind r at a step."""
        return self._sums.faded("pairs", step) / _SHARED

    def state_dict(self) -> dict[str, Any]:
        """Return all sums as plain arrays."""
        return {
            "sums": self._sums.state_dict(),
            "level": self._level.state_dict(),
            "newest": np.stack([self._mean, self._count, self._before]),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, name: str) -> None:
        """Take over saved sums.

        Raises:
            StateError: a damaged state.
        """
        K = self._mean.size
        fields = {
            "sums": schema.mapping,
            "level": schema.mapping,
            "newest": schema.array(3, K, minimum=0.0),
        }
        saved = schema.read(state, fields, name=name)
        self._sums.load_state_dict(saved["sums"], name=f"{name}.sums")
        self._level.load_state_dict(saved["level"], name=f"{name}.level")
        self._mean, self._count, self._before = saved["newest"]
