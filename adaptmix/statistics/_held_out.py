"""Running sums over held-out rows, of which few come at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptmix._checks import FloatArray
from adaptmix.state import _schema as schema
from adaptmix.statistics._sums import NOISE

NAMES = ("count", "loss", *NOISE)
# Rows of a domain after which older ones count half, unless the half-life in steps is longer.
_ROWS = 32.0


class HeldOutSums:
    """Losses and noise terms of the held-out rows that ride in batches, by domain.

    They are forgotten by steps, as other statistics are, but no faster than new rows come: a row
    of a domain in every tenth step would otherwise leave an estimate that stands on ten rows.

    Args:
        sizes: (K,) how many rows of each domain are held out.
        half_life: optimizer steps after which evidence counts half, where many rows come.
    """

    def __init__(self, sizes: FloatArray, *, half_life: float) -> None:
        self._sizes, self._half_life = np.maximum(sizes, 1.0), half_life
        self._last = np.zeros(sizes.size)
        self._sums = {name: np.zeros(sizes.size) for name in NAMES}
        self._squares = np.zeros(sizes.size)

    def __getitem__(self, name: str) -> FloatArray:
        return self._sums[name]

    @property
    def squares(self) -> FloatArray:
        """(K,) Σ w² over rows with discounts w: for the effective number of rows, (Σ w)² / Σ w².

        Rows that come again tell nothing new, so that there are never more than are held out.
        """
        rows = np.maximum(self["count"], self["noise_rows"])
        return np.maximum(self._squares, rows**2 / self._sizes)

    def add(self, step: int, **values: FloatArray) -> None:
        """Add (K,) sums of the rows that came in at ``step``."""
        rows = np.maximum(values["count"], values["noise_rows"])
        faded = np.minimum((step - self._last) / self._half_life, rows / _ROWS)
        keep = np.where(rows > 0.0, np.exp2(-faded), 1.0)
        for name, old in self._sums.items():
            self._sums[name] = keep * old + values[name]
        self._squares = keep**2 * self._squares + rows
        self._last = np.where(rows > 0.0, step, self._last)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain arrays."""
        return {"last": self._last, "squares": self._squares, **self._sums}

    def load_state_dict(self, state: Mapping[str, Any], *, name: str) -> None:
        """Take over saved sums.

        Raises:
            StateError: a damaged state; nothing is changed then.
        """
        K = self._last.size
        fields = dict.fromkeys(("last", "squares"), schema.array(K, minimum=0.0))
        fields |= dict.fromkeys(NAMES, schema.array(K))
        saved = schema.read(state, fields, name=name)
        self._last, self._squares = saved.pop("last"), saved.pop("squares")
        self._sums = saved
