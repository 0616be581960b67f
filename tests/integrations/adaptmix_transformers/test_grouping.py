"""Rows grouped by length: less padding, and everything else as it is without."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptmix.errors import LengthGroupingWarning
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import hf, runs
from tests.integrations.adaptmix_transformers.test_parity import gradient_errors, token_losses
from tests.runs import held_places, record_draws

ACCUMULATION = 4


def train(folder: Path, callback: AdaptMixCallback | None = None, **changes: Any) -> Any:
    """Train with four micro-batches a step, in float64 so that orders of sums do not show."""
    options = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": ACCUMULATION}
    if callback is None:
        callback = AdaptMixCallback("source", policy=hf.Moving(), update_every=1)
    trainer = hf.train(
        folder, callback, **({"model": hf.llama(dtype=torch.float64)} | options | changes)
    )
    return trainer, callback.controller


def steps(trainer: Any) -> list[list[list[list[int]]]]:
    """The rows of every micro-batch of every step, without their padding."""
    batches = [
        [[token for token in row if token != hf.PAD] for row in batch]
        for batch in hf.trained_rows(trainer)
    ]
    return [batches[i : i + ACCUMULATION] for i in range(0, len(batches), ACCUMULATION)]


def padding(trainer: Any) -> float:
    """Share of trained tokens that are padding."""
    tokens = np.concatenate([np.ravel(batch) for batch in hf.trained_rows(trainer)])
    return float((tokens == hf.PAD).mean())


@pytest.mark.parametrize("unit", ["token", "sample"])
def test_every_step_is_the_objective_over_its_rows(unit: str, tmp_path: Path) -> None:
    errors = gradient_errors(tmp_path, unit, accumulation=ACCUMULATION, max_steps=5, **hf.GROUPED)
    assert len(errors) == 5
    assert max(errors) < 1e-10


def test_steps_have_the_same_rows_and_statistics_and_less_padding(tmp_path: Path) -> None:
    (plain, before), (grouped, after) = (train(tmp_path, **changes) for changes in ({}, hf.GROUPED))
    for one, other in zip(steps(plain), steps(grouped), strict=True):
        assert sorted(chain(*one)) == sorted(chain(*other))
        lengths = [[len(row) for row in batch] for batch in other]
        for longer, shorter in pairwise(lengths):
            assert min(longer) >= max(shorter)
    assert steps(plain) != steps(grouped)
    for name in ("seen", "loss_mean", "loss_var", "grad_var", "grad_sq", "grad_gram"):
        wanted = getattr(before.statistics, name)
        np.testing.assert_allclose(getattr(after.statistics, name), wanted, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(after.weights.sampling, before.weights.sampling, rtol=1e-6)
    moved = np.abs(after.weights.sampling - after.mixture.importance).max()
    assert moved > 0.01
    torch.testing.assert_close(
        hf.parameters(grouped.model), hf.parameters(plain.model), rtol=1e-6, atol=1e-7
    )
    assert padding(grouped) < 0.5 * padding(plain)


def test_held_out_rows_that_ride_in_the_batch_have_lengths_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = record_draws(monkeypatch)
    options: dict[str, Any] = {"accumulation": ACCUMULATION, "max_steps": 3, **hf.GROUPED}
    errors = gradient_errors(tmp_path, "token", draws=draws, **options)
    assert held_places(draws)
    assert max(errors) < 1e-10


def test_stop_and_resume_is_bit_identical(tmp_path: Path) -> None:
    runs.check_resumed("grouped", **runs.stop_and_resume(str(tmp_path), "grouped"))


@pytest.mark.parametrize("kept", [True, False])
def test_lengths_come_from_their_column_if_there_is_one(kept: bool, tmp_path: Path) -> None:
    data = hf.rows()
    column = [sum(row) for row in data["input_ids"]]  # nothing that rows themselves tell
    data = data.add_column("size", column)
    collator = hf.pad
    trainer, _ = train(
        tmp_path,
        data=data,
        length_column_name="size",
        collator=collator,
        remove_unused_columns=not kept,
        **hf.GROUPED,
    )
    for step in steps(trainer):
        sums = [[sum(row) for row in batch] for batch in step]
        for longer, shorter in pairwise(sums):
            assert min(longer) >= max(shorter)


def test_held_out_rows_are_grouped_too_and_told_by_domain(tmp_path: Path) -> None:
    held_out = hf.rows({"code": 5, "news": 4, "math": 4}, seed=1)
    options: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "max_steps": 4,
        "per_device_eval_batch_size": 3,
        "trainer_options": {"eval_dataset": held_out},
    }
    plain, grouped = (
        train(tmp_path, **options, **changes)[0].evaluate() for changes in ({}, hf.GROUPED)
    )
    names = {name for name in plain if "_loss" in name}
    assert {f"eval_loss_{name}" for name in hf.SIZES} < names
    for name in names - {"eval_loss"}:  # which is a mean over batches
        assert grouped[name] == pytest.approx(plain[name], rel=1e-6)


def test_a_step_of_one_micro_batch_says_that_nothing_is_grouped(tmp_path: Path) -> None:
    with pytest.warns(LengthGroupingWarning, match="with twice the accumulation"):
        train(tmp_path, gradient_accumulation_steps=1, max_steps=1, **hf.GROUPED)


def test_tokens_per_row_are_not_guessed_from_the_longest_rows(tmp_path: Path) -> None:
    def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = hf.pad(features)
        return batch | {"labels": batch["labels"].double()}  # so that they do not look like tokens

    def losses(outputs: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return token_losses(outputs.logits, inputs["labels"].long())

    callback = AdaptMixCallback("source", unit="token", loss=losses)
    with pytest.raises(ValueError, match="tokens_per_row must be given with unit"):
        train(tmp_path, callback, collator=collate, **hf.GROUPED)
