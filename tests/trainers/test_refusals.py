"""What one process refuses, seen from both; real processes are in ``test_process_mismatch``."""

from __future__ import annotations

import pytest

from adaptmix import Controller
from adaptmix.errors import ObjectiveError
from adaptmix.trainers import Refusals, _refusals
from tests import runs


def refusals(every: int = 10) -> Refusals:
    return Refusals(Controller(runs.mixture(), measure_every=every))


def refuse(by: Refusals) -> None:
    with by.kept():
        raise ObjectiveError("rows meet")


def told(monkeypatch: pytest.MonkeyPatch, *others: str | None) -> None:
    """Let there be other processes that say this."""
    monkeypatch.setattr(_refusals, "world", lambda: (0, 1 + len(others)))
    monkeypatch.setattr(_refusals, "gather", lambda own: [own, *others])


def test_a_process_alone_refuses_at_once() -> None:
    by = refusals()
    with pytest.raises(ObjectiveError, match=r"^rows meet$"):
        refuse(by)
    by.settle()


def test_several_processes_stop_together(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, None)
    by = refusals()
    refuse(by)
    assert by.refused
    with pytest.raises(ObjectiveError, match=r"^rows meet$"):
        by.settle()


def test_a_process_that_refuses_nothing_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, None, "rows meet")
    with pytest.raises(ObjectiveError, match=r"^Rank 2 cannot go on: rows meet$"):
        refusals().settle()


def test_nobody_listens_where_nothing_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in the first step, measured ones and those after them."""
    told(monkeypatch, None)
    by = refusals()
    by.settle()
    told(monkeypatch, "rows meet")
    by.settle()
    with pytest.raises(ObjectiveError):
        refuse(by)
    always = refusals(every=1)
    for _ in range(3):
        with pytest.raises(ObjectiveError):
            always.settle()
