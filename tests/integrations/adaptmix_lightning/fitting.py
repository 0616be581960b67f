"""A fit of the classifier with a callback."""

from __future__ import annotations

from typing import Any

from adaptmix_lightning import AdaptMixCallback
from tests.integrations.adaptmix_lightning import pl


def fit(
    mixer: AdaptMixCallback, module: Any = None, data: Any = None, **options: Any
) -> tuple[Any, Any]:
    module = pl.Classifier() if module is None else module
    trainer = pl.trainer(mixer, **({"max_epochs": 1} | options))
    trainer.fit(module, pl.loader() if data is None else data)
    return trainer, module
