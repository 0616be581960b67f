"""Rows, weights and parameters of whole runs are those of the recorded runs.

A change that should change nothing is held against them. A change that should change a run
records it anew: ``python -m tests.test_golden``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptmix import Controller
from tests import runs

RECORDS = Path(__file__).parent / "golden"
RUNS: dict[str, dict[str, Any]] = {
    "variance_aware": {"controller": {"policy": "variance_aware"}},
    "joint": {
        "controller": {"policy": "joint", "half_life": 30, "holdout": None},
        "run": {"accumulation": 3},
    },
    "erma": {"controller": {"policy": "erma", "estimator": "exact"}},
    "fgls": {"controller": {"policy": "fgls", "lag": 4}, "run": {"num_workers": 2}},
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::adaptmix.errors.RepetitionWarning", "ignore::adaptmix.errors.NoiseWarning"
)


def train(options: dict[str, Any]) -> dict[str, Any]:
    mixture = runs.mixture({"a": 3.0, "b": 2.0, "c": 1.0})
    controller = Controller(
        mixture, seed=3, update_every=5, measure_every=2, **options["controller"]
    )
    net = runs.model()
    controller.watch(net)
    run = runs.Run(controller, net, **options.get("run", {})).train()
    return {
        "rows": run.rows,
        "weights": run.weights,
        "parameters": runs.parameters(net).tolist(),
    }


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_as_recorded(name: str) -> None:
    recorded = json.loads((RECORDS / f"{name}.json").read_text())
    run = train(RUNS[name])
    assert run["rows"] == recorded["rows"]
    for what in ("weights", "parameters"):
        # Sums are in float64; another processor may add them in another order.
        np.testing.assert_allclose(run[what], recorded[what], rtol=1e-9, atol=1e-12)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, options in RUNS.items():
        (RECORDS / f"{name}.json").write_text(json.dumps(train(options)) + "\n")
