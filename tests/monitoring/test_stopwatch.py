"""Overhead, by a clock that is set by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from adaptmix.monitoring._stopwatch import Stopwatch


def test_overhead_is_what_measured_steps_take_longer_over_all_steps() -> None:
    durations = itertools.cycle([1.0] * 9 + [1.5])
    now = itertools.accumulate(durations, initial=0.0)
    watch = Stopwatch(clock=lambda: next(now))
    for step in range(201):
        watch.tick(measured=step % 10 == 0 and step > 0)
    assert watch.overhead == pytest.approx(0.05)


def test_pauses_do_not_count() -> None:
    now = iter([*range(10), 1000, *range(1001, 1030)])
    watch = Stopwatch(clock=lambda: float(next(now)))
    for step in range(40):
        watch.tick(measured=step % 2 == 0)
    assert watch.overhead == 0.0


def test_where_every_step_is_measured_nothing_is_known() -> None:
    watch = Stopwatch()
    for _ in range(20):
        watch.tick(measured=True)
    assert math.isnan(watch.overhead)
