"""What a user's pip installs; `make test-wheel` runs this in a folder without the source."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import adaptmix

PACKAGES = ("adaptmix", "adaptmix_lightning", "adaptmix_transformers")
FILES = metadata.files("adaptmix") or []


def test_the_wheel_is_what_is_tested() -> None:
    site = Path(metadata.distribution("adaptmix").locate_file("")).resolve()  # type: ignore[arg-type]
    assert Path(adaptmix.__file__).resolve().is_relative_to(site)
    assert site.name == "site-packages"


def test_the_wheel_holds_the_packages_and_nothing_else() -> None:
    folders = {file.parts[0] for file in FILES if not file.parts[0].endswith(".dist-info")}
    assert folders - {".."} == set(PACKAGES)
    scripts = {file.stem for file in FILES if file.parts[0] == ".."}  # beside site-packages
    assert scripts == {"adaptmix"}
    names = {file.as_posix() for file in FILES}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    templates = {f"adaptmix/monitoring/templates/page.{kind}" for kind in ("css", "html")}
    assert templates <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_an_integration_without_its_framework_says_what_to_install(framework: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"pip install {framework}.* in a clone"):
        importlib.import_module(f"adaptmix_{framework}")


def test_the_core_imports_no_framework() -> None:
    code = "import sys, adaptmix; print({'lightning', 'transformers'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_the_command_is_installed(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("adaptmix")), "report", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "adaptmix report: run must hold events of AdaptMix" in shown.stderr
