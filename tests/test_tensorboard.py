"""Event files, read back by TensorBoard itself."""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from adaptmix import Controller, LoggingWarning
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.NoiseWarning")

TAGS = {
    f"adaptmix/{quantity}/{domain}"
    for quantity in ("sampling_weight", "loss_weight", "grad_std", "loss", "samples_seen")
    for domain in "abc"
} | {
    "adaptmix/effective_domains",
    "adaptmix/variance_ratio",
    "adaptmix/predicted_gain",
    "adaptmix/coverage",
}


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def logged_run(folder: Path, **options: object) -> runs.Run:
    net = runs.model()
    controller = Controller(runs.mixture(), update_every=4, lag=2, **options)  # type: ignore[arg-type]
    controller.watch(net)
    controller.log_to(folder)
    return runs.Run(controller, net, steps=30)


def test_trajectories_are_the_weights(tmp_path: Path) -> None:
    run = logged_run(tmp_path).train()
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == TAGS
    for i, domain in enumerate("abc"):
        scalars = events.Scalars(f"adaptmix/sampling_weight/{domain}")
        assert [event.step for event in scalars] == [5, 9, 13, 17, 21, 25, 29]
        expected = [run.weights[event.step - 1][i] for event in scalars]
        assert [event.value for event in scalars] == pytest.approx(expected, rel=1e-6)
    seen = [events.Scalars(f"adaptmix/samples_seen/{domain}")[-1].value for domain in "abc"]
    assert sum(seen) == 28 * 12
    assert events.Scalars("adaptmix/variance_ratio")[0].value > 1.0
    assert 1.0 < events.Scalars("adaptmix/effective_domains")[-1].value < 3.0
    gain = events.Scalars("adaptmix/predicted_gain")
    assert [event.step for event in gain] == [5, 9, 13, 17, 21, 25, 29]
    # The first shares in force are the importance, so both say the same then.
    assert gain[0].value == pytest.approx(events.Scalars("adaptmix/variance_ratio")[0].value)


def test_the_layout_puts_all_domains_of_a_quantity_on_one_chart(tmp_path: Path) -> None:
    logged_run(tmp_path)
    events = read(tmp_path)
    summary = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(summary)
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts["loss_weight"] == [f"adaptmix/loss_weight/{domain}" for domain in "abc"]
    heldout = {f"adaptmix/heldout_loss/{domain}" for domain in "abc"}
    assert {tag for tags in charts.values() for tag in tags} == TAGS | heldout


class _Scale(torch.autograd.Function):
    """A product with an autograd function of its own, as fused kernels have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum().reshape(1)


class Hidden(nn.Module):
    """Its parameter is used where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = _Scale.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return scaled


@pytest.mark.filterwarnings("ignore::adaptmix.CoverageWarning")
def test_what_the_probe_does_not_see_is_told(tmp_path: Path) -> None:
    net = nn.Sequential(runs.model(), Hidden())
    controller = Controller(runs.mixture(), update_every=4, lag=2)
    controller.log_to(tmp_path)
    watch = controller.watch(net)
    runs.Run(controller, net, steps=10).train()
    events = read(tmp_path)
    assert watch.coverage is not None
    assert 0.5 < watch.coverage.least < 1.0
    covered = [event.value for event in events.Scalars("adaptmix/coverage")]
    assert covered[-1] == pytest.approx(watch.coverage.least)
    tensors = events.Tensors("adaptmix/not_measured/text_summary")
    assert [event.tensor_proto.string_val[0].decode() for event in tensors] == [
        "| module with parameters that are not measured | type |\n|---|---|\n| `1` | Hidden |"
    ]


def test_where_all_is_seen_no_text_says_so(tmp_path: Path) -> None:
    logged_run(tmp_path).train(10)
    events = read(tmp_path)
    assert [event.value for event in events.Scalars("adaptmix/coverage")] == [1.0, 1.0]
    assert not [tag for tag in events.Tags()["tensors"] if "not_measured" in tag]


def test_a_resumed_run_repeats_no_step(tmp_path: Path) -> None:
    first = logged_run(tmp_path).train(14)
    state = first.state_dict()
    first.train(22)  # goes on, and is lost
    second = logged_run(tmp_path)
    second.load_state_dict(state)
    second.controller.log_to(tmp_path)
    second.train()
    steps = [event.step for event in read(tmp_path).Scalars("adaptmix/loss/a")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 29


def test_observing_logs_what_it_would_do_to_a_writer_of_the_users(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        net = runs.model()
        controller = Controller(
            runs.mixture(), update_every=4, observe_every=1, lag=2, mode="observe"
        )
        controller.watch(net)
        controller.log_to(writer)
        runs.Run(controller, net, steps=30).train()
    events = read(tmp_path)
    last = [events.Scalars(f"adaptmix/sampling_weight/{domain}")[-1].value for domain in "abc"]
    np.testing.assert_allclose(last, controller.proposed.sampling, rtol=1e-6)
    assert np.abs(np.array(last) - controller.mixture.importance).max() > 0.01


def test_evaluations_are_logged(tmp_path: Path) -> None:
    run = logged_run(tmp_path).train(3)
    run.controller.record_evaluation({"a": 1.5, "c": 0.25})
    events = read(tmp_path)
    for domain, value in (("a", 1.5), ("c", 0.25)):
        scalars = events.Scalars(f"adaptmix/heldout_loss/{domain}")
        assert [(event.step, event.value) for event in scalars] == [(3, value)]


GONE = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def warned_of_logs(run: Callable[[], Any]) -> list[str]:
    """The warnings of a run about its logs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if w.category is LoggingWarning]


@GONE
def test_a_directory_that_goes_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    run = logged_run(folder).train(6)
    shutil.rmtree(folder)
    messages = warned_of_logs(run.train)
    assert len(messages) == 1
    assert "adaptmix could not log (FileNotFoundError" in messages[0]
    same = logged_run(tmp_path / "others").train()
    assert run.controller.completed == 30
    assert run.weights == same.weights
    run.controller.record_evaluation({"a": 1.0})


@GONE
def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = logged_run(tmp_path).train(6)

    def full(_writer: RecordWriter, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    messages = warned_of_logs(run.train)
    assert len(messages) == 1
    assert "No space left on device" in messages[0]
    assert run.controller.completed == 30


def test_a_directory_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    messages = warned_of_logs(lambda: logged_run(tmp_path / "file" / "logs").train())
    assert len(messages) == 1
    assert "(NotADirectoryError" in messages[0] or "(FileExistsError" in messages[0]


@GONE
def test_a_writer_of_the_users_that_fails_is_a_warning() -> None:
    class Broken(SummaryWriter):
        def __init__(self) -> None:
            self.calls = 0

        def add_custom_scalars(self, *args: Any) -> None:
            self.calls += 1
            raise RuntimeError("closed")

    writer = Broken()
    controller = Controller(runs.mixture(), policy="static", update_every=4, lag=2)
    messages = warned_of_logs(lambda: controller.log_to(writer))
    assert len(messages) == 1
    runs.Run(controller, runs.model(), steps=10).train()
    assert writer.calls == 1
