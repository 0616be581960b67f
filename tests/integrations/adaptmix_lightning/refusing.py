"""A fit that must stop, by name."""

from __future__ import annotations

from typing import Any

import pytest

from adaptmix.errors import ObjectiveError
from adaptmix_lightning import AdaptMixCallback
from tests.integrations.adaptmix_lightning import pl


def refused(match: str, module: Any = None, data: Any = None, *more: Any, **options: Any) -> None:
    trainer = pl.trainer(AdaptMixCallback(), *more, **({"max_epochs": 1} | options))
    with pytest.raises(ObjectiveError, match=match):
        trainer.fit(
            pl.Classifier() if module is None else module, pl.loader() if data is None else data
        )
