"""How much longer the steps take in which something is measured."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

# Fewer steps of either kind tell nothing; older ones than the last so many are forgotten.
_LEAST, _KEPT = 5, 200


class Stopwatch:
    """Times steps on the host, and waits for no device.

    Medians leave out pauses between steps, such as evaluations. What every step costs alike is not
    in the comparison.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: float | None = None
        self._times: dict[bool, deque[float]] = {
            measured: deque(maxlen=_KEPT) for measured in (False, True)
        }
        self._count = {False: 0, True: 0}

    def tick(self, *, measured: bool) -> None:
        """Count a step that has ended.

        Args:
            measured: whether gradients were observed in it or weights updated after it.
        """
        now = self._clock()
        if self._last is not None:
            self._times[measured].append(now - self._last)
            self._count[measured] += 1
        self._last = now

    @property
    def overhead(self) -> float:
        """Time that measuring adds, as a share of the time without it; NaN early."""
        plain, measured = self._times[False], self._times[True]
        if min(len(plain), len(measured)) < _LEAST:
            return float("nan")
        part = self._count[True] / sum(self._count.values())
        return max(part * (float(np.median(measured) / np.median(plain)) - 1.0), 0.0)
