"""Liger's kernels under the Trainer and TRL; they need a GPU.

A run takes liger-kernel, which is installed apart: ``pip install --no-deps liger-kernel``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments
from transformers.models.llama import modeling_llama

pytest.importorskip("trl")
from trl import SFTConfig, SFTTrainer

from adaptmix.errors import ObjectiveError
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf, trl_matrix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # of a package that the other tests do without
]
LIGER: dict[str, Any] = {"use_liger_kernel": True, "use_cpu": False}
UNFUSED = {"liger_kernel_config": {"fused_linear_cross_entropy": False}}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Take the kernels out again, which liger-kernel puts into the classes of all Llama models."""
    module = vars(modeling_llama)
    kept, classes = dict(module), [kind for kind in module.values() if isinstance(kind, type)]
    methods = {kind: dict(vars(kind)) for kind in classes if kind.__module__ == module["__name__"]}
    yield
    module.update(kept)
    for kind, before in methods.items():
        for name, value in list(vars(kind).items()):
            if before.get(name) is not value and name in before:
                setattr(kind, name, before[name])


PLAIN: Any = partial(Trainer, data_collator=hf.pad)


@pytest.mark.parametrize(
    ("kind", "config", "changes"),
    [
        (PLAIN, TrainingArguments, LIGER | UNFUSED),
        (SFTTrainer, SFTConfig, LIGER),
        (SFTTrainer, SFTConfig, LIGER | trl_matrix.PADDING_FREE),
    ],
)
@pytest.mark.parametrize("policy", trl_matrix.POLICIES)
def test_the_other_kernels_train_the_objective_and_are_measured(
    kind: Any,
    config: Any,
    changes: dict[str, Any],
    policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They write into what they saved, so that a proof must not spoil the training pass."""
    pytest.importorskip("liger_kernel")
    setup = trl_matrix.Setup(kind, config, trl_matrix.llama, hf.rows, trl_matrix.tokens, changes)
    monkeypatch.setitem(trl_matrix.SETUPS, "liger", setup)
    trl_matrix.run(tmp_path, "liger", policy, 1, 1)


def test_the_fused_loss_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel")
    with pytest.raises(ObjectiveError, match="LigerFusedLinearCrossEntropyFunction computes it"):
        hf.train(tmp_path, AdaptMixCallback("source"), **LIGER)
