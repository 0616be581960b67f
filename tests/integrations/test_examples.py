"""The examples for Lightning, Fabric and Accelerate run, adapt and go on."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

Example = Callable[..., str]
EXAMPLES = Path(__file__).parents[2] / "examples"

# They show the warnings a user sees; what counts here is what they print.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Example:
    """Run an example as a script, in a folder of its own; returns what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # seed_everything writes into it

    def example(name: str, *arguments: str) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return example


@pytest.mark.parametrize(
    ("arguments", "domain"),
    [
        (("--task", "digits", "--accumulate", "2", "--steps", "300"), "bots"),
        (("--task", "text", "--steps", "12"), "unicode_noisy"),
    ],
)
def test_lightning(run: Example, arguments: tuple[str, ...], domain: str) -> None:
    printed = run("train_lightning.py", *arguments)
    assert domain in printed
    # A run of few steps has no gain beyond chance yet, and its shares stay.
    moved = "--accumulate" in arguments
    effect = "make the gradient's variance" if moved else "leave the gradient's variance as it is"
    assert f"These shares {effect}" in printed
    assert "accuracy" in printed


def test_fabric(run: Example) -> None:
    options = ("--accumulate", "2", "--precision", "bf16-mixed", "--batch-size", "16")
    assert "accuracy on right labels" in run("train_fabric.py", "--steps", "60", *options)
    again = run("train_fabric.py", "--steps", "100", "--resume", *options)
    seen = sum(float(line.split()[1]) for line in again.splitlines()[1:4])
    assert seen == pytest.approx(90 * 32)  # as of the last update that was read


def test_accelerate(run: Example) -> None:
    options = ("--accumulate", "2", "--precision", "bf16", "--batch-size", "8")
    run("train_accelerate.py", "--steps", "12", *options)
    again = run("train_accelerate.py", "--steps", "24", "--resume", *options)
    seen = sum(float(line.split()[1]) for line in again.splitlines()[1:6])
    assert seen == pytest.approx(20 * 16)
