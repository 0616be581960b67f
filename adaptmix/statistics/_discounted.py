"""Sums that forget: exponential moving averages kept as numerator and denominator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray
from adaptmix.state import _schema as schema


class DiscountedSums:
    """Named sums of one shape that lose half their weight every ``half_life`` steps.

    A ratio of two of them is an exponential moving average: weighted by counts and free of the
    bias of a start at zero. An entry is discounted only when new evidence for it arrives, so one
    that is not seen keeps its estimate for ever.

    Args:
        names: of the sums.
        shape: of each sum, (K,) or (K, K).
        half_life: in optimizer steps.
    """

    def __init__(self, names: Sequence[str], shape: tuple[int, ...], *, half_life: float) -> None:
        self._sums = {name: np.zeros(shape) for name in names}
        self._last = np.zeros(shape)
        self._half_life = half_life

    def __getitem__(self, name: str) -> FloatArray:
        return self._sums[name]

    def add(self, step: int, present: NDArray[np.bool_], **values: FloatArray) -> None:
        """Add evidence that came in at ``step`` for the entries that are ``present``."""
        keep = self._fading(step)
        for name, old in self._sums.items():
            self._sums[name] = np.where(present, keep * old + values[name], old)
        self._last = np.where(present, step, self._last)

    def replace(self, step: int, present: NDArray[np.bool_], **values: FloatArray) -> None:
        """Forget the entries that are ``present`` and set them to new evidence."""
        for name, old in self._sums.items():
            self._sums[name] = np.where(present, values[name], old)
        self._last = np.where(present, step, self._last)

    def faded(self, name: str, step: int) -> FloatArray:
        """Return a sum as it would be discounted at ``step``."""
        return self._fading(step) * self._sums[name]

    def _fading(self, step: int) -> FloatArray:
        fading: FloatArray = np.exp2(-(step - self._last) / self._half_life)
        return fading

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and when each entry was last added to."""
        return {"last": self._last, **self._sums}

    def load_state_dict(self, state: Mapping[str, Any], *, name: str) -> None:
        """Take over saved sums of the same names and shape.

        Args:
            state: what ``state_dict`` returned.
            name: of the sums, for messages.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        shape = self._last.shape
        fields = {"last": schema.array(*shape, minimum=0.0)}
        fields |= dict.fromkeys(self._sums, schema.array(*shape))
        saved = schema.read(state, fields, name=name)
        self._last = saved.pop("last")
        self._sums = saved


def ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """Return top / bottom, NaN where there is nothing to divide by."""
    unknown: FloatArray = np.full(top.shape, np.nan)
    return np.divide(top, bottom, out=unknown, where=bottom > 0.0)
