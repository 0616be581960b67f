"""Runs on streams, stopped anywhere, beside the run that never stops."""

from __future__ import annotations

import pytest

from tests.trials.streamed import Trial


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_of_a_run_that_never_stops(seed: int) -> None:
    """The first trials; ``python -m tests.trials.streamed --number 300`` runs many."""
    Trial(seed, workers=seed % 4 == 0).run()
