"""Charts in a trainer's own TensorBoard logger, read back by TensorBoard itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from adaptmix.monitoring._trainer_board import TrainerBoard


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def charts(folder: Path) -> dict[str, list[str]]:
    """Titles of charts, and the regular expressions of what they show."""
    summary = read(folder).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(summary)
    return {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}


def test_domains_are_runs_with_one_chart_for_each_quantity(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        board = TrainerBoard(
            writer, ["a", "c++"], step=0, prefix="train/", heldout="eval/loss_", observing=True
        )
        board.write(4, {"loss/a": 1.0, "loss/c__": 2.0, "coverage": 1.0})
        board.write_evaluation(4, {"c++": 3.0})
    layout = charts(tmp_path)
    assert layout["loss"] == ["^adaptmix/loss$"]
    assert layout["heldout_loss"] == ["^adaptmix/heldout_loss$"]
    assert layout["coverage"] == ["^train/adaptmix/coverage$"]
    assert "proposed_loss_weight" in layout
    assert "loss_weight" not in layout
    for folder, loss in (("a", 1.0), ("c__", 2.0)):
        (point,) = read(tmp_path / folder).Scalars("adaptmix/loss")
        assert (point.step, point.value) == (4, loss)
    assert read(tmp_path / "c__").Scalars("adaptmix/heldout_loss")[0].value == 3.0
    assert read(tmp_path / "a").Tags()["scalars"] == ["adaptmix/loss"]
    assert read(tmp_path).Tags()["scalars"] == []  # the trainer writes its own


@pytest.mark.parametrize("heldout", [None, "eval/loss_"])
def test_charts_of_very_many_domains_show_the_trainers_scalars(
    heldout: str | None, tmp_path: Path
) -> None:
    names = [f"d{i}" for i in range(51)]
    with SummaryWriter(str(tmp_path)) as writer:
        board = TrainerBoard(writer, names, step=0, prefix="train/", heldout=heldout)
        board.write(4, {"loss/d0": 1.0})
    layout = charts(tmp_path)
    assert layout["loss"][:2] == ["^train/adaptmix/loss/d0$", "^train/adaptmix/loss/d1$"]
    assert layout.get("heldout_loss", ["^eval/loss_d0$"])[0] == "^eval/loss_d0$"
    assert ("heldout_loss" in layout) == (heldout is not None)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
