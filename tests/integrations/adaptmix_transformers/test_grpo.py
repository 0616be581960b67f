"""GRPO under TRL: a prompt with its group of completions is a sample.

Tests of ``adaptmix_transformers/_groups.py``, ``adaptmix_transformers/_group_shape.py``,
``adaptmix_transformers/_group_loader.py``, ``adaptmix_transformers/_group_rules.py`` and
``adaptmix_transformers/_group_logs.py``, by whole runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")  # it does not support the oldest transformers
from trl import GRPOTrainer

from adaptmix import policies
from adaptmix.errors import LagError, MissingStatisticError, ObjectiveError, StateError
from adaptmix_transformers import AdaptMixCallback
from tests.integrations.adaptmix_transformers import grpo, hf

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
WEIGHTS = policies.Static(
    sampling={"easy": 0.25, "never": 0.25, "mixed": 0.5},
    loss={"easy": 0.6, "never": 1.2, "mixed": 1.2},
)
HALF = 4 * grpo.GENERATIONS  # completions, so that a step of as many prompts has two micro-batches
# Which completions are trained on when: in one step of two, by another model, or twice over.
CUTS: dict[str, dict[str, Any]] = {
    "a step": {},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": HALF},
    "two steps": {"steps_per_generation": 2},
    "half a step": {
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": HALF,
    },
    "two steps, twice": {
        "num_iterations": 2,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": HALF,
    },
}


def static(**changes: Any) -> AdaptMixCallback:
    """A callback with uneven weights from the first step on."""
    return AdaptMixCallback("task", policy=WEIGHTS, lag=4, update_every=1, **changes)


def checked(
    folder: Path, callback: AdaptMixCallback, *, kind: Any = GRPOTrainer, **changes: Any
) -> grpo.Objective:
    """Train, and return what compared each step's gradient with the objective's."""
    trainer = grpo.make(folder, callback, kind=kind, **changes)
    objective = grpo.Objective(trainer, callback)
    trainer.train()
    assert len(objective.errors) == trainer.args.max_steps
    return objective


@pytest.mark.parametrize(
    ("loss_type", "cut"),
    [
        *(("grpo", cut) for cut in CUTS),
        *(("dapo", cut) for cut in CUTS if cut != "half a step"),  # one generation is kept
    ],
)
def test_every_step_is_the_objective(loss_type: str, cut: str, tmp_path: Path) -> None:
    changes = CUTS[cut] | {"loss_type": loss_type, "max_steps": 4}
    objective = checked(tmp_path, static(), kind=grpo.Double, **changes)
    assert max(objective.errors) < 1e-10
    assert (objective.clipped > 0) == ("two steps" in cut)  # ratios differ from one, and clip


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "dr_grpo"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"loss_type": "sapo"},
        {"loss_type": "cispo"},
        {"loss_type": "grpo", "beta": 0.3},
        {"loss_type": "grpo", "scale_rewards": "none"},
        {"loss_type": "dapo", "mask_truncated_completions": True},
    ],
)
def test_losses_that_are_sums_over_groups_are_the_objective(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    cut = {"steps_per_generation": 2, "max_steps": 2}
    assert max(checked(tmp_path, static(), kind=grpo.Double, **cut, **changes).errors) < 1e-10


def test_the_head_that_trl_fuses_gives_the_objective(tmp_path: Path) -> None:
    assert max(checked(tmp_path, static()).errors) < 1e-5


def test_statistics_are_of_groups(tmp_path: Path) -> None:
    """The squared gradient of a task is the mean over groups, each of which is summed first."""
    callback = AdaptMixCallback(
        "task", policy=grpo.Moving(), estimator="exact", update_every=1, half_life=1e9
    )
    trainer = grpo.make(tmp_path, callback, max_steps=2, learning_rate=0.0, loss_type="grpo")
    objective = grpo.Objective(trainer, callback)
    squares: dict[str, list[float]] = {name: [] for name in grpo.TASKS}

    def measure(model: Any) -> None:
        (batch,) = objective.batches
        if trainer.state.global_step:  # the first step is sent off, and read in the second
            return
        rows = objective._rows(model, batch) / batch["completion_mask"].sum(1)
        prompts = len(rows) // grpo.GENERATIONS
        for j in range(prompts):
            (same,) = {tuple(ids) for ids in batch["prompt_ids"][j::prompts].tolist()}
            parts = torch.autograd.grad(
                rows[j::prompts].mean(), list(model.parameters()), retain_graph=True
            )
            square = sum(float(part.double().square().sum()) for part in parts)
            squares[grpo.TASKS[same[0] - 3]].append(square)

    trainer.callback_handler.callbacks.insert(0, grpo.Before(measure))
    trainer.train()
    first = {name: np.mean(values) for name, values in squares.items()}
    controller = callback.controller
    for name, square in zip(controller.mixture.domains, controller.statistics.grad_sq, strict=True):
        assert square == pytest.approx(first[name], rel=1e-5)
    assert first["never"] == 0.0 < first["mixed"]


def test_the_default_policy_sees_the_gradient_and_logs_each_task(tmp_path: Path) -> None:
    callback = AdaptMixCallback("task", update_every=2)
    objective = checked(tmp_path, callback, max_steps=6, logging_steps=2)
    assert max(objective.errors) < 1e-5
    logs = [entry for entry in objective.trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        tasks = {name: entry[f"adaptmix/reward/{name}"] for name in grpo.TASKS}
        assert np.mean(list(tasks.values())) == pytest.approx(entry["reward"], abs=0.2)
        assert tasks["never"] == 0.0
        assert entry["adaptmix/zero_advantage/never"] == 1.0
        assert 0.0 <= entry["adaptmix/zero_advantage/mixed"] < 1.0
    assert logs[-1]["adaptmix/coverage"] >= 0.98
    assert logs[-1]["adaptmix/grad_std/never"] == 0.0
    with pytest.raises(MissingStatisticError, match=r"'joint' needs .*advantage and no label"):
        joint = AdaptMixCallback("task", policy="joint", holdout=None, update_every=1)
        grpo.make(tmp_path, joint).train()


def test_a_run_that_stops_goes_on_to_the_bit(tmp_path: Path) -> None:
    def run(resume: str | None) -> Any:
        callback = AdaptMixCallback("task", policy=grpo.Moving(), update_every=1, lag=3)
        changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
        trainer = grpo.make(
            tmp_path, callback, hf.Record(), max_steps=6, steps_per_generation=2, **changes
        )
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        return hf.parameters(trainer.model), torch.stack(hf.gradients(trainer))

    whole, gradients = run(None)
    rest, others = run("checkpoint-2")
    assert torch.equal(whole, rest)
    assert torch.equal(gradients[2:], others)
    with pytest.raises(StateError, match="save_steps must be a multiple of 2"):
        run("checkpoint-3")


def test_workers_and_evaluation_leave_training_as_it_is(tmp_path: Path) -> None:
    alone = checked(tmp_path, static(), max_steps=4).trainer
    options = {"eval_dataset": grpo.prompts(8)}
    changes = {"dataloader_num_workers": 1, "eval_strategy": "steps", "eval_steps": 4}
    other = checked(tmp_path, static(), max_steps=4, options=options, **changes).trainer
    assert torch.equal(hf.parameters(alone.model), hf.parameters(other.model))
    assert any("eval_reward" in entry for entry in other.state.log_history)
    assert "_prepare_inputs" not in vars(other)  # the trainer has its methods back


class OwnLoss(GRPOTrainer):  # type: ignore[misc]
    """Changes the loss."""

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        return 2.0 * super()._compute_loss(model, inputs)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"loss_type": "bnpo"}, 'loss_type="bnpo": it divides by the tokens of each micro-batch'),
        ({"scale_rewards": "batch"}, 'scale_rewards="batch": .* all rewards'),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "normalises rewards over"),
        ({"top_entropy_quantile": 0.5}, r"top_entropy_quantile=0\.5: .* quantile"),
        ({"entropy_coef": 0.1}, "an entropy bonus"),
        ({"shuffle_dataset": False}, "shuffle_dataset=False"),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
            "per_device_train_batch_size=2 and num_generations=4: a group would be spread",
        ),
        ({"num_iterations": 2, "steps_per_generation": 1} | CUTS["half a step"], "whole ones"),
        ({"kind": OwnLoss}, r"OwnLoss\._compute_loss of your own"),
    ],
)
def test_what_couples_groups_is_refused_by_name(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ObjectiveError, match=match):
        grpo.make(tmp_path, static(), **changes).train()


@pytest.mark.parametrize("settings", [{"unit": "token"}, {"holdout": 0.1}, {"max_epochs": 1.0}])
def test_settings_without_a_meaning_for_prompts_are_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}.* must be left out"):
        grpo.make(tmp_path, AdaptMixCallback("task", **settings)).train()


def test_a_lag_that_does_not_cover_a_generation_is_refused(tmp_path: Path) -> None:
    callback = AdaptMixCallback("task", lag=2)
    with pytest.raises(LagError, match="lag must be at least 3 with num_iterations=1"):
        grpo.make(tmp_path, callback, steps_per_generation=4).train()
