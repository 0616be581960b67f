"""Settings of the whole suite."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# CI draws the same examples each time, so more of them would find nothing new from day to day.
settings.register_profile(
    "ci", parent=settings.get_profile("dev"), derandomize=True, database=None, max_examples=50
)
settings.register_profile("thorough", parent=settings.get_profile("dev"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# Results must not depend on how sums are split over threads, and small tensors are faster so.
# The variable is for the processes that tests start; some libraries warn where it is unset.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


# What `make test` leaves out and `make test-all` runs: beginnings of test ids.
SLOW = ("tests/conformance/",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, and skip what needs a GPU where there is none."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
