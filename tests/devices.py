"""The device of the conformance suite: the CPU, or a GPU where the environment asks for it.

``ADAPTMIX_TEST_DEVICE=cuda python -m pytest tests/conformance`` judges every set-up on a GPU. The
stated objective is still differentiated on the CPU.
"""

from __future__ import annotations

import os
from typing import Any

import torch

DEVICE = os.environ.get("ADAPTMIX_TEST_DEVICE", "cpu")
USE_CPU = DEVICE == "cpu"

# Products and convolutions of float32 are float32, whatever else the device could do.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def moved(collate: Any, device: str) -> Any:
    """Return a collator whose batch lies on a device."""
    if device == "cpu":
        return collate

    def collated(rows: Any) -> Any:
        return {name: value.to(device) for name, value in collate(rows).items()}

    return collated
