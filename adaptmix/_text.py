"""Short texts of long values."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike

_MOST = 8


def listed(items: Iterable[str], *, number: int) -> str:
    """Return the first few of ``number`` items, separated by commas.

    Example:
        >>> listed(map(str, range(100)), number=100)
        '0, 1, 2, 3, 4, 5, 6, 7, … 92 more'
    """
    text = ", ".join(islice(items, _MOST))
    return f"{text}, … {number - _MOST} more" if number > _MOST else text


def rounded(values: ArrayLike) -> str:
    """Return numbers with three digits, the first few of them.

    Example:
        >>> rounded([0.123456, 2.0])
        '[0.123, 2]'
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    return f"[{listed((f'{value:.3g}' for value in numbers), number=numbers.size)}]"
