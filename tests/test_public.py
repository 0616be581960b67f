"""What users see of the package: its names, its version and how its objects print.

Also tests ``errors.py``.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import ConcatDataset

import adaptmix
from adaptmix import Controller, DomainStats, Mixture, Weights
from tests import runs

ROOT = Path(adaptmix.__file__).parent
# Modules that users import by name; packages are listed by what they export.
MODULES = {"adaptmix.controller", "adaptmix.errors", "adaptmix.noise"}
EXPORTS = {
    "adaptmix.noise": {"NoiseTerms", "softmax", "squared"},
    "adaptmix.policies": {
        *("ERMA", "FGLS", "Joint", "Static", "VarianceAware", "NAMED"),
        *(
            "Chain",
            "chain",
            "Floor",
            "Shrink",
            "Smooth",
            "Temperature",
            "Transfer",
            "TrustRegion",
            "WarmUp",
        ),
        *("Policy", "Preparation", "Refinement", "Run", "Start"),
    },
    "adaptmix.solvers": {
        *("neyman_shares", "neyman_counts", "fgls_weights", "gap_weights"),
        *("joint_weights", "JointSolution", "transfer_weights", "TransferSolution"),
    },
}
# Slow to import, and not needed by those who train a plain loop without a log.
LAZY = {
    *("scipy.linalg", "scipy.optimize", "scipy.special", "scipy.stats"),
    *("tensorboard", "torch.utils.tensorboard", "sympy", "matplotlib", "jinja2", "xml.etree"),
    *("transformers", "lightning", "accelerate", "datasets"),
}
CLASSES = {
    *("Controller", "DomainStats", "Domains", "Draw", "Mixture", "Schedule", "Segments", "Weights"),
}
PACKAGES = {"errors", "noise", "policies", "solvers"}


def test_the_public_names_are_these() -> None:
    assert set(adaptmix.__all__) == CLASSES | PACKAGES | {"register_rule", "__version__"}
    assert {name for name in CLASSES if inspect.isclass(getattr(adaptmix, name))} == CLASSES
    assert {name for name in PACKAGES if inspect.ismodule(getattr(adaptmix, name))} == PACKAGES
    assert not {name for name in vars(adaptmix) if name.endswith(("Error", "Warning"))}


@pytest.mark.parametrize("package", EXPORTS)
def test_a_public_package_exports_these(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) == EXPORTS[package]


def test_the_kit_of_trainers_describes_every_part() -> None:
    kit = importlib.import_module("adaptmix.trainers")
    described = set(re.findall(r"``(\w+)``", kit.__doc__ or ""))
    assert set(kit.__all__) <= described


def test_errors_exports_errors_and_warnings_only() -> None:
    exported = [getattr(adaptmix.errors, name) for name in adaptmix.errors.__all__]
    assert all(issubclass(kind, Exception) for kind in exported)
    assert {name for name in vars(adaptmix.errors) if name[0].isupper()} == set(
        adaptmix.errors.__all__
    )


def test_every_other_module_has_an_underscore() -> None:
    modules = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for path in ROOT.rglob("*.py")
        if not path.name.startswith("_")
    }
    assert modules == MODULES


def test_importing_adaptmix_imports_nothing_slow() -> None:
    before = "import sys, torch; before = set(sys.modules)"
    code = f"{before}; import adaptmix; print({LAZY} & sys.modules.keys() - before)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_the_version_is_the_distributions() -> None:
    assert adaptmix.__version__ == importlib.metadata.version("adaptmix")


def test_the_texts_name_one_version() -> None:
    root = ROOT.parent
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    (cited,) = re.findall(r"^version: (.+)$", (root / "CITATION.cff").read_text(), re.M)
    changed = re.findall(r"^## \[(.+?)\]", (root / "CHANGELOG.md").read_text(), re.M)
    assert version == cited == changed[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            Mixture({"a": [1, 2, 3], "b": [4]}),
            "Mixture({'a': 3 rows, importance 0.75, 'b': 1 rows, importance 0.25})",
        ),
        (
            Weights([0.25, 0.75], [1.0, 1.0], [0.5, 0.5]),
            "Weights(sampling=[0.25, 0.75], loss=[1, 1], importance=[0.5, 0.5])",
        ),
        (
            DomainStats(seen=[3, 4], grad_var=[1.23456, np.nan]),
            "DomainStats(count=[inf, inf], seen=[3, 4], age=[inf, inf], loss_count=[3, 4], "
            "noise_count=[3, 4], holdout_count=[0, 0], grad_var=[1.23, nan], "
            "grad_freedom=[inf, inf], grad_sq_freedom=[0, 0], grad_mean_pairs=[inf, inf], "
            "tokens_per_row=[1, 1])",
        ),
    ],
)
def test_objects_say_what_they_hold(value: object, text: str) -> None:
    assert repr(value) == text


def test_a_controller_says_where_it_is() -> None:
    controller = Controller(runs.mixture())
    shares = "shares: a 0.548, b 0.329, c 0.123)"
    begun = "Controller(policy='variance_aware', mode='adapt', completed=0"
    assert repr(controller) == f"{begun}, {shares}"
    controller.loader(12, steps=40)
    assert repr(controller) == f"{begun} of 40, {shares}"
    many = Mixture({f"d{i}": range(2) for i in range(1000)})
    assert len(repr(many)) < 400
    assert "… 992 more" in repr(Controller(many))


def test_a_mixture_of_the_parts_of_a_dataset() -> None:
    parts: list[Any] = [[1, 2, 3], [4]]
    whole = Mixture(ConcatDataset(parts), importance={"0": 1.0, "1": 1.0})
    assert whole.domains == ("0", "1")
    assert whole.sizes.tolist() == [3, 1]
    assert whole.importance.tolist() == [0.5, 0.5]
    assert whole.__getitems__([3, 0]) == [4, 1]


def test_a_model_that_is_given_is_watched_at_once() -> None:
    net = runs.model()
    controller = Controller(runs.mixture(), net)
    with pytest.raises(ValueError, match="model must be watched once"):
        controller.watch(net)
    run = runs.Run(controller, net, steps=12).train()
    assert "grad_var" in run.controller.statistics.supplied()
