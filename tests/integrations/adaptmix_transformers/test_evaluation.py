"""Held-out losses are told by domain, or it is said why not.

Also tests ``adaptmix_transformers/_heldout.py``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf


def evaluate(folder: Path, **changes: Any) -> dict[str, float]:
    """Metrics of two evaluation sets of a tiny T5."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=hf.VOCABULARY, **(sizes | {"decoder_start_token_id": 0}))
    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    held_out = hf.rows({"code": 5, "news": 4, "math": 4}, seed=1)
    trainer = Seq2SeqTrainer(
        model=T5ForConditionalGeneration(config),
        args=Seq2SeqTrainingArguments(
            output_dir=str(folder), generation_max_length=4, **quiet, **changes
        ),
        train_dataset=hf.rows(),
        eval_dataset={"one": held_out, "two": held_out},
        data_collator=hf.pad,
        compute_metrics=lambda _: {"scored": 1.0},
        callbacks=[AdaptMixCallback("source")],
    )
    return trainer.evaluate()


@pytest.mark.parametrize("generate", [False, True])
def test_generation_says_why_domains_are_not_told(
    generate: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="adaptmix")
    metrics = evaluate(tmp_path, predict_with_generate=generate)
    told = {f"eval_{part}_loss_{name}" for part in ("one", "two") for name in hf.SIZES}
    assert metrics["eval_one_scored"] == 1.0
    assert told.isdisjoint(metrics) if generate else told <= set(metrics)
    assert ("predict_with_generate=True does so" in caplog.text) == generate
