"""The examples run as someone copies them, adapt, go on, and measure the whole gradient."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from adaptmix import Controller

Example = Callable[..., str]
EXAMPLES = Path(__file__).parents[2] / "examples"
SEEN = 0.98  # of the gradient's squared norm

# They show the warnings a user sees; what counts here is what they print.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Example:
    """Run an example as a script, in a folder of its own; returns what it printed."""
    # Alone in an empty folder, as someone copies it: nothing beside it can be imported.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # seed_everything writes into it

    seen: list[float] = []
    count = Controller.step

    def recording_step(self: Controller) -> None:
        count(self)
        found, probe = self._measurements.coverage, self._measurements.probe
        if found is not None and probe is not None and probe.inspected:
            seen.append(found.least)  # the mass is not measured where every parameter is seen

    monkeypatch.setattr(Controller, "step", recording_step)

    def example(name: str, *arguments: str) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        shutil.copy(EXAMPLES / name, tmp_path)
        runpy.run_path(str(tmp_path / name), run_name="__main__")
        assert seen[-1] >= SEEN
        return capsys.readouterr().out

    return example


def test_quickstart(run: Example, tmp_path: Path) -> None:
    printed = run("quickstart.py", "--seeds", "1", "--steps", "20")
    assert "held-out loss" in printed
    assert "page: runs/quickstart/report.html" in printed
    page = (tmp_path / "runs" / "quickstart" / "report.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")


def test_quickstart_on_files_of_ones_own(run: Example, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three " * 2000)
    (tmp_path / "b.txt").write_text("drei zwei eins " * 2000)
    options = ("--seeds", "1", "--steps", "20", "--data", "mine=a.txt", "yours=b.txt")
    assert "held-out loss" in run("quickstart.py", *options)


def test_lightning(run: Example) -> None:
    printed = run("train_lightning.py", "--accumulate", "2", "--steps", "300")
    assert "bots" in printed
    assert "These shares make the gradient's variance" in printed
    assert "accuracy" in printed


def test_transformers(run: Example, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three " * 500)
    (tmp_path / "b.txt").write_text("drei zwei eins " * 500)
    printed = run("train_transformers.py", "--steps", "12", "--data", "mine=a.txt", "yours=b.txt")
    assert "yours" in printed


def test_fabric(run: Example) -> None:
    options = ("--accumulate", "2", "--precision", "bf16-mixed", "--batch-size", "16")
    assert "accuracy on right labels" in run("train_fabric.py", "--steps", "60", *options)
    again = run("train_fabric.py", "--steps", "100", "--resume", *options)
    seen = sum(float(line.split()[1]) for line in again.splitlines()[2:5])
    assert seen == pytest.approx(90 * 32)  # as of the last update that was read


def test_accelerate(run: Example) -> None:
    options = ("--accumulate", "2", "--precision", "bf16", "--batch-size", "8")
    run("train_accelerate.py", "--steps", "12", *options)
    again = run("train_accelerate.py", "--steps", "24", "--resume", *options)
    seen = sum(float(line.split()[1]) for line in again.splitlines()[1:4])
    assert seen == pytest.approx(20 * 16)


@pytest.mark.parametrize("name", ["train_trl.py", "train_dpo.py", "train_grpo.py"])
def test_trl(name: str, run: Example) -> None:
    pytest.importorskip("trl")
    assert "Trained on the sum over domains" in run(name, "--steps", "12")
