"""Event files, read back by TensorBoard itself.

Also tests ``monitoring/_eventfile.py``, ``monitoring/_quantities.py`` and
``monitoring/_run_log.py``.
"""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import GFile
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from adaptmix import Controller
from adaptmix.errors import LoggingWarning
from adaptmix.monitoring._tensorboard import TensorBoardLog
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.NoiseWarning")

BY_DOMAIN = {
    f"adaptmix/{quantity}"
    for quantity in (
        *("sampling_weight", "loss_weight", "grad_std", "grad_std_error", "loss", "loss_error"),
        *("noise", "noise_error", "samples_seen", "epochs"),
    )
}
OVERALL = {
    f"adaptmix/{quantity}"
    for quantity in (
        *("effective_domains", "variance_ratio", "predicted_gain", "predicted_gain_error"),
        *("predicted_gain_bias", "proposed_gain", "coverage", "overhead"),
    )
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
    assert set(events.Tags()["scalars"]) == OVERALL
    domains = {name: read(tmp_path / name) for name in "abc"}
    for i, part in enumerate(domains.values()):
        assert set(part.Tags()["scalars"]) == BY_DOMAIN
        scalars = part.Scalars("adaptmix/sampling_weight")
        assert [event.step for event in scalars] == [5, 9, 13, 17, 21, 25, 29]
        expected = [run.weights[event.step - 1][i] for event in scalars]
        assert [event.value for event in scalars] == pytest.approx(expected, rel=1e-6)
    seen = [part.Scalars("adaptmix/samples_seen")[-1].value for part in domains.values()]
    assert sum(seen) == 28 * 12
    epochs = [part.Scalars("adaptmix/epochs")[-1].value for part in domains.values()]
    assert epochs == pytest.approx([n / size for n, size in zip(seen, runs.SIZES, strict=True)])
    assert events.Scalars("adaptmix/variance_ratio")[0].value > 1.0
    assert 1.0 < events.Scalars("adaptmix/effective_domains")[-1].value < 3.0
    gain = events.Scalars("adaptmix/predicted_gain")
    assert [event.step for event in gain] == [5, 9, 13, 17, 21, 25, 29]
    # The first shares in force are the importance, so both say the same then.
    assert gain[0].value == pytest.approx(events.Scalars("adaptmix/variance_ratio")[0].value)


def test_very_many_domains_are_tags_of_one_run(tmp_path: Path) -> None:
    names = [f"domain {i}" for i in range(51)]
    board = TensorBoardLog(tmp_path, names, step=0)
    board.write(1, {"loss/domain 50": 2.0, "coverage": 1.0})
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert read(tmp_path).Scalars("adaptmix/loss/domain 50")[0].value == 2.0


@pytest.mark.filterwarnings("ignore::adaptmix.errors.CoverageWarning")
def test_what_the_probe_does_not_see_is_told(tmp_path: Path) -> None:
    net = nn.Sequential(runs.model(), runs.Hidden())
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
    steps = [event.step for event in read(tmp_path / "a").Scalars("adaptmix/loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 29


def test_a_run_that_logs_before_it_is_restored_repeats_no_step(tmp_path: Path) -> None:
    first = logged_run(tmp_path).train(14)
    state = first.state_dict()
    first.train(22)  # goes on, and is lost
    second = logged_run(tmp_path)
    second.load_state_dict(state)
    second.train(18)
    steps = [event.step for event in read(tmp_path / "a").Scalars("adaptmix/loss")]
    assert steps == [5, 9, 13, 17]


def test_a_new_run_in_a_used_directory_replaces_the_old_one(tmp_path: Path) -> None:
    logged_run(tmp_path).train()
    logged_run(tmp_path).train(10)
    for folder in (tmp_path, tmp_path / "a"):
        events = read(folder)
        assert {
            event.step for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
        } == {5, 9}


def test_observing_logs_what_it_would_do_to_a_writer_of_the_users(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        net = runs.model()
        controller = Controller(
            runs.mixture(), update_every=4, measure_every=1, lag=2, mode="observe"
        )
        controller.watch(net)
        controller.log_to(writer)
        runs.Run(controller, net, steps=30).train()
    parts = [read(tmp_path / domain) for domain in "abc"]
    last = [part.Scalars("adaptmix/proposed_sampling_weight")[-1].value for part in parts]
    assert not any("adaptmix/sampling_weight" in part.Tags()["scalars"] for part in parts)
    np.testing.assert_allclose(last, controller.proposed.sampling, rtol=1e-6)
    assert np.abs(np.array(last) - controller.mixture.importance).max() > 0.01


def test_evaluations_are_logged_with_their_errors(tmp_path: Path) -> None:
    run = logged_run(tmp_path).train(3)
    run.controller.record_evaluation({"a": 1.5, "c": 0.25}, errors={"a": 0.5})
    for domain, value in (("a", 1.5), ("c", 0.25)):
        scalars = read(tmp_path / domain).Scalars("adaptmix/heldout_loss")
        assert [(event.step, event.value) for event in scalars] == [(3, value)]
    assert read(tmp_path / "a").Scalars("adaptmix/heldout_loss_error")[0].value == 0.5
    assert "adaptmix/heldout_loss_error" not in read(tmp_path / "c").Tags()["scalars"]


@pytest.mark.parametrize(
    ("errors", "match"), [({"z": 0.1}, "domain must be one of"), ({"a": -0.1}, "errors")]
)
def test_errors_of_evaluations_are_checked(errors: dict[str, float], match: str) -> None:
    controller = Controller(runs.mixture())
    with pytest.raises(ValueError, match=match):
        controller.record_evaluation({"a": 1.5}, errors=errors)


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
    assert "AdaptMix could not log (FileNotFoundError" in messages[0]
    same = logged_run(tmp_path / "others").train()
    assert run.controller.completed == 30
    assert run.weights == same.weights
    run.controller.record_evaluation({"a": 1.0})


@GONE
def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = logged_run(tmp_path).train(6)

    def full(_file: GFile, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GFile, "write", full)
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
def test_a_writer_of_the_users_that_fails_is_a_warning(tmp_path: Path) -> None:
    class Broken(SummaryWriter):
        def __init__(self, folder: Path) -> None:
            self.log_dir, self.calls = str(folder), 0

        def _get_file_writer(self) -> Any:
            self.calls += 1
            raise RuntimeError("closed")

    writer = Broken(tmp_path)
    controller = Controller(runs.mixture(), policy="static", update_every=4, lag=2)
    controller.log_to(writer)
    messages = warned_of_logs(runs.Run(controller, runs.model(), steps=10).train)
    assert len(messages) == 1
    assert "(RuntimeError: closed)" in messages[0]
    assert controller.completed == 10
    assert writer.calls == 1
