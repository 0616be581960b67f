"""Runs read back from what TensorBoard keeps.

Also tests ``monitoring/_record.py`` and ``monitoring/_texts.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from adaptmix import Controller
from adaptmix.errors import NoiseWarning
from adaptmix.monitoring import read_runs
from adaptmix.monitoring._texts import (
    Caution,
    configuration_text,
    read_configuration,
    read_warning,
    warning_text,
)
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.AdaptMixWarning")


def trained(folder: Path, *, mode: str = "adapt", policy: str = "joint") -> runs.Run:
    """A logged run of 30 steps with two evaluations."""
    net = runs.model()
    controller = Controller(
        runs.mixture(), policy=policy, update_every=4, lag=2, mode=mode, holdout=None
    )
    controller.watch(net)
    controller.log_to(folder)
    run = runs.Run(controller, net, steps=30)
    for step, loss in ((10, 1.5), (30, 1.25)):
        run.train(step)
        controller.record_evaluation(dict.fromkeys("abc", loss), errors={"a": 0.125})
    return run


def test_a_run_is_reconstructed_from_its_record(tmp_path: Path) -> None:
    run = trained(tmp_path / "mine")
    controller = run.controller
    (record,) = read_runs([tmp_path])
    assert record.label == "mine"
    assert record.domains == ("a", "b", "c")
    assert record.configuration == controller.configuration
    assert record.policy == "joint"
    assert not record.observing
    np.testing.assert_array_equal(record.importance, controller.mixture.importance)
    # Scalars are 32-bit there.
    for name, series in record.of("sampling_weight").items():
        i = record.domains.index(name)
        np.testing.assert_array_equal(series.steps, [5, 9, 13, 17, 21, 25, 29])
        expected = [run.weights[step - 1][i] for step in series.steps]
        np.testing.assert_allclose(series.values, expected, rtol=1e-6)
    np.testing.assert_allclose(record.final("loss_weight"), controller.weights.loss, rtol=1e-6)
    stats = controller.statistics
    np.testing.assert_allclose(record.final("noise"), stats.noise, rtol=1e-6)
    sizes = controller.mixture.sizes
    np.testing.assert_allclose(
        record.final("epochs") * sizes, record.final("samples_seen"), rtol=1e-6
    )
    heldout = record.heldout()
    assert heldout is not None
    np.testing.assert_array_equal(heldout.steps, [10, 30])
    np.testing.assert_allclose(heldout.values, [1.5, 1.25])
    assert record.of("heldout_loss_error")["a"].last == 0.125
    assert set(record.overall) >= {"predicted_gain", "predicted_gain_error", "variance_ratio"}
    assert [caution.kind for caution in record.cautions] == [
        kind for kind, _ in controller._warn.messages
    ]
    assert NoiseWarning.__name__ in {caution.kind for caution in record.cautions}


def test_observed_shares_are_proposals(tmp_path: Path) -> None:
    trained(tmp_path, mode="observe")
    (record,) = read_runs([tmp_path])
    assert record.observing
    assert "sampling_weight" not in record.by_domain
    assert set(record.of("sampling_weight")) == set("abc")
    assert record.attained_gain == pytest.approx(1.0)


def test_every_run_below_a_directory_is_found_once(tmp_path: Path) -> None:
    for name in ("one", "two/deep"):
        trained(tmp_path / name)
    with SummaryWriter(str(tmp_path / "other")) as writer:
        writer.add_scalar("loss", 1.0, 1)
    assert [record.label for record in read_runs([tmp_path])] == ["one", "two/deep"]


def test_runs_of_one_name_in_several_places_are_told_apart(tmp_path: Path) -> None:
    """As Lightning names every run "version_0": the runs of two modes were one group."""
    places = [tmp_path / mode / "version_0" for mode in ("observe", "adapt")]
    for place in places:
        trained(place, mode=place.parent.name)
    labels = ["observe/version_0", "adapt/version_0"]
    assert [record.label for record in read_runs(places)] == labels
    assert [record.label for record in read_runs([*places, places[0]])] == labels
    assert [record.label for record in read_runs([f"one={place}" for place in places])] == [
        "one"
    ] * 2


def test_a_label_may_be_given(tmp_path: Path) -> None:
    trained(tmp_path / "one")
    assert read_runs([f"mine={tmp_path / 'one'}"])[0].label == "mine"
    (tmp_path / "a=b").mkdir()
    with pytest.raises(ValueError, match="must hold events of AdaptMix"):
        read_runs([tmp_path / "a=b"])


def test_directories_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="none lie in or below"):
        read_runs([tmp_path])


def test_a_resumed_run_is_one_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = runs.Run(Controller(runs.mixture(), update_every=4, lag=2), runs.model(), steps=30)
    first.controller.watch(first.net)
    first.controller.log_to(tmp_path)
    state = first.train(14).state_dict()
    first.train(22)
    second = runs.Run(Controller(runs.mixture(), update_every=4, lag=2), runs.model(), steps=30)
    second.controller.watch(second.net)
    second.load_state_dict(state)
    second.controller.log_to(tmp_path)
    second.train()
    (record,) = read_runs([tmp_path])
    np.testing.assert_array_equal(record.of("loss")["a"].steps, [5, 9, 13, 17, 21, 25, 29])
    assert "out of order" not in caplog.text


def test_a_trainers_record_is_read_without_its_prefixes(tmp_path: Path) -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), update_every=4, lag=2)
    controller.watch(net)
    run = runs.Run(controller, net, steps=10).train()
    with SummaryWriter(str(tmp_path)) as writer:
        text = configuration_text(controller.configuration)
        writer.add_text("train/adaptmix/configuration", text, 0)
        for tag, value in run.controller.scalars().items():
            writer.add_scalar(f"train/adaptmix/{tag}", value, 10)
        writer.add_scalar("train/loss", 1.0, 10)
        for name in ("a", "b", "c", "unknown"):
            writer.add_scalar(f"eval/loss_{name}", 2.0, 10)
    (record,) = read_runs([tmp_path])
    np.testing.assert_allclose(
        record.final("sampling_weight"), controller.proposed.sampling, rtol=1e-6
    )
    assert set(record.of("heldout_loss")) == set("abc")
    assert "predicted_gain" in record.overall


def test_modules_that_are_not_measured_are_told(tmp_path: Path) -> None:
    net = nn.Sequential(runs.model(), runs.Hidden())
    controller = Controller(runs.mixture(), update_every=4, lag=2)
    controller.log_to(tmp_path)
    controller.watch(net)
    runs.Run(controller, net, steps=10).train()
    (record,) = read_runs([tmp_path])
    assert "| `1` | Hidden |" in record.unseen


def test_texts_read_back_what_was_written() -> None:
    given = {"domains": ["a", "日本 ```"], "seed": 3}
    assert read_configuration(configuration_text(given)) == given
    assert read_configuration("something else") == {}
    caution = Caution("NoiseWarning", "first line\n\nsecond **line**")
    assert read_warning(warning_text(caution)) == caution
    assert read_warning("something else") is None
