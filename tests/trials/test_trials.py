"""Runs of real processes, stopped, killed and resumed, beside the reference."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from adaptmix.data._permutation import Permutations
from tests.trials.reference import order


def test_rows_are_those_of_the_reference_wherever_a_run_is_stopped_or_killed() -> None:
    """The first trials; ``python -m tests.trials.trial --number 1000`` runs many."""
    command = [sys.executable, "-m", "tests.trials.trial", "--number", "12"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    counted = json.loads(result.stdout.splitlines()[-1])
    assert counted["trials"] == 12
    for what in ("parts killed", "parts with another mixture", "workers"):
        assert counted[what] > 0


def test_orders_in_plain_numbers_are_those_in_one_pass() -> None:
    for size in (1, 2, 5, 31, 32, 33, 64, 100, 1000):
        orders = Permutations(np.array([size]), seed=3, names=["d0"])
        for epoch in (-1, 0, 7):
            same = np.zeros(size, dtype=np.int64)
            found = orders(same, same + epoch, np.arange(size)).tolist()
            assert found == [order("d0", epoch, place, size, 3) for place in range(size)]
