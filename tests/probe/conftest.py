"""What the tests of the probe share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adaptmix.probe.estimators import _sketch as sketch
from tests.probe.cases import CASES, Stack


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["exact", "sketch"])
def estimator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose sums must be right, with sketches that are smaller than the models here."""
    monkeypatch.setattr(sketch, "_NARROW", 3)
    monkeypatch.setattr(sketch, "_VECTOR", 5)
    name: str = request.param
    return name


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Stack, Tensor, Tensor]:
    model, data = CASES[request.param]
    torch.manual_seed(0)
    return model().double(), *data()
