"""What a Trainer's loggers and its choice of the best model get."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from tests.integrations.adaptmix_transformers import hf
from tests.integrations.adaptmix_transformers.moving import adapting
from tests.integrations.adaptmix_transformers.test_parity import token_losses


def test_logs_go_where_the_trainers_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = adapting()
    trainer = hf.train(
        tmp_path,
        callback,
        report_to=["tensorboard"],
        eval_strategy="epoch",
        trainer_options={"eval_dataset": hf.rows(seed=4)},
    )
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [4, 8]
    shares = [logged[-1][f"adaptmix/sampling_weight/{name}"] for name in sorted(hf.SIZES)]
    assert sum(shares) == pytest.approx(1.0)
    assert "adaptmix/" not in capsys.readouterr().out
    domain = next(path.parent for path in tmp_path.rglob("events*") if path.parent.name == "code")
    events, part = (EventAccumulator(str(folder)) for folder in (domain.parent, domain))
    tags, own = (set(each.Reload().Tags()["scalars"]) for each in (events, part))
    assert {"train/loss", "train/adaptmix/grad_std/news", "train/adaptmix/variance_ratio"} <= tags
    assert {"adaptmix/sampling_weight", "adaptmix/heldout_loss"} <= own
    summary = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(summary)
    charted = [tag for chart in layout.category[0].chart for tag in chart.multiline.tag]
    assert "^adaptmix/sampling_weight$" in charted
    assert all(any(re.match(each, tag) for tag in tags | own) for each in charted)


@pytest.mark.filterwarnings("ignore::adaptmix.errors.RegressionWarning")
def test_held_out_losses_choose_the_best_model(tmp_path: Path) -> None:
    held_out = hf.rows({"code": 9, "news": 6, "math": 5}, seed=4)
    callback = adapting()
    trainer = hf.train(
        tmp_path,
        callback,
        learning_rate=5e-2,
        max_steps=9,
        eval_strategy="steps",
        eval_steps=3,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=3,
        per_device_eval_batch_size=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_weighted_loss",
        trainer_options={"eval_dataset": held_out},
    )
    means = written_out_evaluation(trainer.model, held_out)
    importance = dict(zip(sorted(hf.SIZES), callback.controller.mixture.importance, strict=True))
    weighted = sum(importance[name] * mean for name, mean in means.items())
    assert trainer.state.best_metric == pytest.approx(weighted, rel=1e-5)
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(history) == 4
    best = min(history, key=lambda entry: entry["eval_weighted_loss"])
    assert best["eval_weighted_loss"] == trainer.state.best_metric
    for name, mean in means.items():
        assert best[f"eval_loss_{name}"] == pytest.approx(mean, rel=1e-5)


def written_out_evaluation(model: Any, data: Any) -> dict[str, float]:
    """Mean token loss of each domain, row by row."""
    model.eval()
    sums = {name: [0.0, 0] for name in hf.SIZES}
    for row in data:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            losses, mask = token_losses(model(input_ids=ids).logits, ids)
        sums[row["source"]][0] += float(losses.sum())
        sums[row["source"]][1] += int(mask.sum())
    return {name: total / count for name, (total, count) in sums.items()}


def test_several_evaluation_sets_and_no_evaluated_domains(tmp_path: Path) -> None:
    sets = {"new": hf.rows(seed=2), "plain": hf.rows(seed=3).remove_columns("source")}
    trainer = hf.make(tmp_path, adapting(), trainer_options={"eval_dataset": sets})
    metrics = trainer.evaluate()
    assert {"eval_new_loss", "eval_new_loss_code", "eval_plain_loss"} <= set(metrics)
    assert "eval_plain_loss_code" not in metrics
    assert trainer.predict(sets["new"]).metrics["test_loss"] > 0.0
