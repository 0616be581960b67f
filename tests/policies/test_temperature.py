"""Temperature against its formula written out, and at its ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adaptmix import Domains
from adaptmix.policies import Run, Temperature
from adaptmix.policies._base import started

INFO = Domains(("a", "b", "c"), [100, 400, 1600], [0.5, 0.3, 0.2])


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.3, 1.0])
def test_shares_are_powers_of_sizes_and_the_objective_stays(exponent: float) -> None:
    weights = started(Temperature(exponent), INFO, Run()).weights
    power = np.array([100.0, 400.0, 1600.0]) ** exponent
    np.testing.assert_allclose(weights.sampling, power / power.sum())
    np.testing.assert_array_equal(weights.objective, INFO.importance)


def test_what_has_no_power_is_refused() -> None:
    with pytest.raises(ValueError, match="exponent must be finite"):
        Temperature(math.inf)
    with pytest.raises(ValueError, match="Temperature needs the size of every domain"):
        Temperature(0.5).init(Domains(("a", "b"), [100, math.inf], [0.5, 0.5]), Run())
    with pytest.raises(ValueError, match="exponent must leave every domain a share; got 1000"):
        Temperature(1000.0).init(INFO, Run())
