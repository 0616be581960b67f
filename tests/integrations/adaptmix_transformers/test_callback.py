"""One callback does all of it: sampling, weighting, logging, stopping and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.adaptmix_transformers import runs


@pytest.mark.parametrize("variant", runs.VARIANTS)
def test_stop_and_resume_is_bit_identical(variant: str, tmp_path: Path) -> None:
    runs.check_resumed(variant, **runs.stop_and_resume(str(tmp_path), variant))
