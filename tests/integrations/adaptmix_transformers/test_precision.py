"""Statistics of a run in half precision are those of the run in float32, to that precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptmix import DomainStats
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf

# bfloat16 has 8 bits of mantissa and float16 has 11; a squared length of many entries has the
# relative error of a few of them.
HALF = [
    pytest.param("cpu", {"bf16": True}, 0.02, id="cpu-bf16"),
    pytest.param("cuda", {"bf16": True}, 0.02, id="cuda-bf16", marks=pytest.mark.gpu),
    pytest.param("cuda", {"fp16": True}, 0.005, id="cuda-fp16", marks=pytest.mark.gpu),
    pytest.param("cuda", {"torch_compile": True}, 1e-3, id="cuda-compiled", marks=pytest.mark.gpu),
    pytest.param("cuda", {}, 1e-4, id="cuda-float32", marks=pytest.mark.gpu),
]


def measured(folder: Path, device: str, **changes: Any) -> DomainStats:
    """Statistics of twelve measured steps at parameters that stay."""
    mixer = AdaptMixCallback("source", mode="observe", measure_every=1, update_every=4)
    hf.train(
        folder, mixer, use_cpu=device == "cpu", learning_rate=0.0, max_steps=12, seed=3, **changes
    )
    return mixer.controller.statistics


@pytest.mark.parametrize(("device", "changes", "tolerance"), HALF)
def test_half_precision(
    device: str, changes: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    got = measured(tmp_path / "half", device, **changes)
    want = measured(tmp_path / "full", "cpu")
    for name in ("loss_mean", "grad_sq", "grad_var", "count"):
        mine, theirs = getattr(got, name), getattr(want, name)
        assert np.isfinite(theirs).all()
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, err_msg=name)


@pytest.mark.gpu
def test_an_overflow_of_float16_is_not_measured(tmp_path: Path) -> None:
    """The scaler starts too high, so the first steps are skipped; statistics stay finite."""
    assert torch.cuda.is_available()
    mixer = AdaptMixCallback("source", measure_every=1, update_every=2)
    trainer = hf.make(tmp_path, mixer, fp16=True, max_steps=12)
    trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    trainer.train()
    statistics = mixer.controller.statistics
    assert np.isfinite(statistics.grad_sq).all()
    assert np.isfinite(statistics.grad_var).all()
