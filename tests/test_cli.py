"""The command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptmix import Controller, policies
from adaptmix._cli import main
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore::adaptmix.errors.AdaptMixWarning")


def logged(folder: Path, *, mode: str, seed: int, loss: float) -> None:
    """A run whose held-out loss is made up."""
    net = runs.model()
    controller = Controller(runs.mixture(), update_every=4, lag=2, mode=mode, seed=seed)
    controller.watch(net)
    controller.log_to(folder)
    runs.Run(controller, net, steps=12).train()
    controller.record_evaluation(dict.fromkeys("abc", loss))


def test_runs_are_grouped_compared_and_written_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        logged(tmp_path / "runs" / f"plain-{seed}", mode="observe", seed=seed, loss=2.0)
        logged(tmp_path / "runs" / f"mixed-{seed}", mode="adapt", seed=seed, loss=1.5 + seed / 100)
    target = tmp_path / "page.html"
    picture = tmp_path / "weights.png"
    asked = ["report", str(tmp_path / "runs"), "--html", str(target), "--picture", str(picture)]
    assert main(asked) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert out.startswith("It helped. Sampling")
    # 0.495 ± 12.706 · 0.005.
    assert "held-out loss is 0.495 ± 0.064 lower after 12 steps" in out
    assert out.endswith(f"page: {target}\npicture: {picture}\n")
    text = target.read_text(encoding="utf-8")
    assert "plain" in text
    assert "mixed" in text


def test_without_a_file_the_verdict_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged(tmp_path, mode="adapt", seed=0, loss=2.0)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("Nothing to compare with.")


def test_a_directory_without_a_run_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert "adaptmix report: run must hold events of AdaptMix" in capsys.readouterr().err


def test_a_harmful_run_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shares that starve the domain whose gradients are the noisiest."""
    starved = policies.Static({"a": 0.9, "b": 0.05, "c": 0.05})
    for mode, loss in (("observe", 2.0), ("adapt", 2.2)):
        net = runs.model()
        policy = starved if mode == "adapt" else "variance_aware"
        mixture = runs.mixture(dict.fromkeys("abc", 1.0))
        controller = Controller(mixture, policy=policy, update_every=4, lag=2, mode=mode)
        controller.watch(net)
        controller.log_to(tmp_path / mode)
        runs.Run(controller, net, batch_size=40, steps=40).train()
        controller.record_evaluation(dict.fromkeys("abc", loss))
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("It did harm. Sampling made the gradient ")
    assert "times noisier than proportional sampling" in out
    assert "held-out loss is 0.200 higher after 40 steps; all three domains paid" in out
    assert "Stop this set-up" in (tmp_path / "page.html").read_text(encoding="utf-8")
