"""The guide's code runs: the Python blocks of a page, from top to bottom, in one namespace."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest

from adaptmix._cli import main
from adaptmix.errors import AdaptMixWarning

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "examples" / "guide"
PAGES = sorted(path.name for path in GUIDE.glob("*.md"))
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>.*)\n(?P<code>(?:.*\n)*?)(?P=indent)```$", re.M)
# Python runs, and so does the command ``adaptmix``; the others are for other programs or the eyes.
LANGUAGES = {"python", "bash", "yaml", "diff", "text"}
IMPORT = re.compile(r"^(?:from|import) (\w+)", re.M)
OPTIONAL = {
    *("accelerate", "datasets", "lightning", "tokenizers", "transformers", "trl"),
    *("grain", "litdata", "torchdata"),
}


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language, and code with the page's own line numbers."""
    text = (GUIDE / page).read_text()
    return [
        (
            match["language"].strip(),
            "\n" * text.count("\n", 0, match.start("code")) + textwrap.dedent(match["code"]),
        )
        for match in FENCE.finditer(text)
    ]


def python(page: str) -> str:
    return "\n".join(code for language, code in blocks(page) if language == "python")


def need_packages(code: str) -> None:
    """Skip where a package that the code imports is not installed."""
    for package in sorted(set(IMPORT.findall(code)) & OPTIONAL):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def reset_accelerate() -> None:
    """Forget the Accelerator of another test; a process has only one."""
    if "accelerate" in sys.modules:
        state = importlib.import_module("accelerate.state")
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


def needs_processes(page: str) -> bool:
    return "init_process_group" in python(page)


WITH_CODE = [page for page in PAGES if python(page)]


def test_there_is_code_to_run() -> None:
    assert {"index.md", "loop.md", "transformers.md", "lightning.md"} <= set(WITH_CODE)
    assert {"processes.md", "policies.md", "custom_policy.md", "schedules.md"} <= set(WITH_CODE)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page: str) -> None:
    found = blocks(page)
    assert (GUIDE / page).read_text().count("```") == 2 * len(found)
    assert {language for language, _ in found} <= LANGUAGES


@pytest.mark.parametrize("page", [page for page in WITH_CODE if not needs_processes(page)])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_packages(python(page))
    reset_accelerate()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        # Other packages' warnings are theirs; what AdaptMix warns of must not be in the guide.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", AdaptMixWarning)
        for language, code in blocks(page):
            if language == "python":
                exec(compile(code, GUIDE / page, "exec"), namespace)
            for line in code.splitlines() if language == "bash" else ():
                if line.startswith("adaptmix "):
                    assert main(shlex.split(line)[1:]) == 0


@pytest.mark.parametrize("page", [page for page in WITH_CODE if needs_processes(page)])
def test_code_runs_in_two_processes(page: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        f"{python(page)}\nfrom tests.leaving import leave\n\nleave()\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [*command, "train.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
