"""Shares by version: told once, known for a while, and again after a resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptmix import Schedule
from adaptmix.errors import StateError, VersionError
from adaptmix.policies import Static
from tests.elsewhere import IMPORTANCE, Cycle, made, train


def test_a_resumed_run_knows_what_batches_in_flight_were_drawn_with() -> None:
    options: dict[str, Any] = {"policy": Cycle(), "steps": 11, "update_every": 2}
    stopped, heard = made(6, **options)
    trained = train(stopped, heard, np.random.default_rng(0))
    assert heard.version == 5 and trained[-1][0] < heard.version
    resumed, hears = made(6, **options)
    resumed.load_state_dict(stopped.state_dict())
    # Told at once, and the versions of before are known.
    assert hears.told[-1] == heard.told[-1]
    for version in range(6):
        resumed.foreign([0] * 6, version=version)
        resumed.abandon_step()
    # The same draws in both go on to the same weights.
    for controller in (stopped, resumed):
        controller.expect(6, steps=20)
    rest = [train(c, h, np.random.default_rng(1)) for c, h in ((stopped, heard), (resumed, hears))]
    assert rest[0] == rest[1]
    assert heard.told[-1] == hears.told[-1] and hears.version > 8


def test_versions_are_forgotten_after_a_while_and_state_stays_small() -> None:
    controller, listener = made()
    for number in range(100):
        controller.pin("a", sampling=0.2 + number / 200)
    assert listener.version >= 99
    oldest = listener.version - 63
    for version in (oldest, listener.version):
        controller.foreign([0, 1], version=version)
        controller.abandon_step()
    text = rf"one of the last 64 that were published, {oldest} to .* got {oldest - 1}, .* shares="
    with pytest.raises(VersionError, match=text):
        controller.foreign([0, 1], version=[listener.version, oldest - 1])
    with pytest.raises(VersionError, match=r"up to \d+; got 1000\. After a resume, load the"):
        controller.foreign([0, 1], version=1000)
    assert len(controller.state_dict()["plan"]["versions"]["__array__"]) == 64


def test_shares_that_stay_are_not_told_again() -> None:
    controller, listener = made(policy=Static(), steps=20)
    train(controller, listener, np.random.default_rng(0))
    assert [version for version, _ in listener.told] == [0]
    np.testing.assert_allclose(listener.shares(), IMPORTANCE)


def test_scheduled_shares_are_told_at_each_stage() -> None:
    stages = {0: {"a": 1, "b": 1, "c": 2}, 5: {"a": 2, "b": 1, "c": 1}}
    controller, listener = made(policy="static", sampling=Schedule(stages), steps=12)
    trained = train(controller, listener, np.random.default_rng(0), ahead=0)
    first = listener.version - 1
    assert [version for version, _ in trained] == [first] * 5 + [listener.version] * 7
    np.testing.assert_allclose(listener.shares(first), [0.25, 0.25, 0.5])
    np.testing.assert_allclose(listener.shares(), [0.5, 0.25, 0.25])


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    controller, listener = made(12, policy=Cycle(), steps=6, update_every=1)
    train(controller, listener, np.random.default_rng(0))
    plan = controller._plan
    good = plan.state_dict()
    for field, value, text in (
        ("versions", good["versions"][::2].copy(), "must be 1 to 64 consecutive numbers"),
        ("versions", good["versions"][1:], r"must have \d rows that sum to 1"),
        ("version_shares", good["version_shares"] / 2, "rows that sum to 1"),
        ("shares", good["shares"][:2], r"shares must have shape \(3,\)"),
        ("completed", -1, "completed must be an integer"),
    ):
        with pytest.raises(StateError, match=text):
            plan.load_state_dict(good | {field: value})
    np.testing.assert_equal(plan.state_dict(), good)
