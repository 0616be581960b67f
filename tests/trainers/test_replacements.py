"""Replaced methods come back as they were."""

from __future__ import annotations

from typing import Any

import pytest

from adaptmix.trainers._replacements import Replacements


class Owner:
    def first(self) -> str:
        return "first"

    def second(self) -> str:
        return "second"


def test_methods_are_given_back_as_they_were() -> None:
    owner: Any = Owner()
    mine = owner.second = lambda: "set by a user"
    methods = Replacements(owner)
    assert methods["first"]() == "first"
    methods.replace("first", lambda: "other " + methods["first"]())
    methods.replace("second", lambda: "other " + methods["second"]())
    assert (owner.first(), owner.second()) == ("other first", "other set by a user")
    with pytest.raises(ValueError, match="not replaced yet; got 'first'"):
        methods.replace("first", owner.first)
    methods.restore()
    methods.restore()
    assert vars(owner) == {"second": mine}
    assert owner.first() == "first"
