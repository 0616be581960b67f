"""Every set-up trains on the stated gradient in each of 30 steps, or is refused with a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance import (
    harness,
    lightnings,
    loops,
    trainer_divisors,
    trainer_groups,
    trainer_losses,
    trainer_memory,
    trainer_models,
    trainer_modules,
    trainer_ratios,
    trainer_targets,
    trls,
)
from tests.integrations.adaptmix_lightning import pl

CASES = harness.by_name(
    [
        *trainer_divisors.CASES,
        *trainer_groups.CASES,
        *trainer_losses.CASES,
        *trainer_memory.CASES,
        *trainer_models.CASES,
        *trainer_modules.CASES,
        *trainer_ratios.CASES,
        *trainer_targets.CASES,
        *trls.CASES,
        *lightnings.CASES,
        *loops.CASES,
    ]
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::adaptmix.errors.AdaptMixWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func'"),
    *pl.FILTERS,
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
]


@pytest.mark.parametrize(
    ("name", "policy"),
    [(case.name, policy) for case in CASES.values() for policy in case.policies],
)
def test_right_or_refused(name: str, policy: str, tmp_path: Path) -> None:
    case = CASES[name]
    verdict = harness.run(case, policy, tmp_path)
    assert verdict.outcome in ("right", "refused"), str(verdict)
    if case.expect == "right":
        assert verdict.outcome == "right", str(verdict)
    elif case.expect is not None:
        assert verdict.outcome == "refused", str(verdict)
        assert re.search(case.expect, verdict.message), verdict.message
    if verdict.outcome == "right" and policy == "forced":
        assert verdict.weighted  # so that an unweighted gradient would have shown
