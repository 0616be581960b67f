"""What a policy may ask of a run."""

from __future__ import annotations

import pytest

from adaptmix.policies import (
    Run,
)


def test_a_run_tells_what_a_policy_may_ask() -> None:
    with pytest.raises(ValueError, match="counts must be one of stratified, multinomial"):
        Run(counts="poisson")
    with pytest.raises(ValueError, match="horizon must be an integer >= 1; got 0"):
        Run(8, 0)
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        Run(batch_size=1.5)  # type: ignore[arg-type]
