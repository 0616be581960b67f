"""The README's code runs; what the texts speak of is there: tests, files and make targets."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "examples/guide").glob("*.md"))}
TEXTS = {"README.md": README, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(), **PAGES}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def quoted(text: str) -> list[str]:
    return sorted(set(re.findall(r"`([^`\n]+)`", text)))


def code(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README) if kind == language]


# What it says is there.


def functions() -> set[str]:
    """The names of all test functions."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def cited(text: str) -> list[str]:
    """The tests that a text cites; an ellipsis stands for the rest of a name."""
    found = (re.findall(r"\btest_\w+…?(?!\w*(?:\.py|/))", quote) for quote in quoted(text))
    return sorted({name for names in found for name in names})


def test_every_cited_test_is_there() -> None:
    names = functions()
    found = {
        cite: any(name.startswith(cite[:-1]) if cite[-1] == "…" else name == cite for name in names)
        for text in TEXTS.values()
        for cite in cited(text)
    }
    assert len(found) > 30
    assert [cite for cite, there in found.items() if not there] == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_named_file_is_there(page: str) -> None:
    rooms = ("adaptmix", "integrations", "tests", "examples")
    files = {path.as_posix() for room in rooms for path in (ROOT / room).rglob("*.py")}
    named = {
        name
        for quote in quoted(TEXTS[page])
        for name in re.findall(r"(?<![<\w/])[\w/]+\.(?:py|png|md)\b", quote)
    }
    missing = [
        name
        for name in named
        if not (ROOT / name).exists() and not any(file.endswith(f"/{name}") for file in files)
    ]
    assert missing == []


def test_every_link_leads_to_a_file() -> None:
    links = set(re.findall(r"\]\(([\w./]+)\)", README))
    assert [link for link in links if not (ROOT / link).exists()] == []
    for text in PAGES.values():
        linked = set(re.findall(r"\]\(([\w./]+\.\w+)(?:#[\w-]+)?\)", text))
        assert [link for link in linked if not (ROOT / "examples/guide" / link).exists()] == []


@pytest.mark.parametrize(
    "target",
    sorted({name for text in TEXTS.values() for name in re.findall(r"`make ([a-z-]+)", text)}),
)
def test_every_make_target_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_is_short_and_names_the_commands() -> None:
    assert README.count("\n") <= 150
    assert {"make demo", "make test"} <= set(re.findall(r"make \w+", README))


# Its code.


def rows() -> TensorDataset:
    return TensorDataset(torch.randn(96, 8), torch.randint(4, (96,)))


def loop_of(diff: str, *, old: bool) -> str:
    """One side of a diff."""
    gone = "+" if old else "-"
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith(gone))


@pytest.mark.parametrize("old", [True, False])
def test_both_sides_of_the_diff_run(old: bool) -> None:
    (diff,) = code("diff")
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    before = model.weight.detach().clone()
    names: dict[str, Any] = {"model": model, "prose": rows(), "code": rows()}
    prelude = (
        "import torch\nfrom torch.nn import functional as F\n"
        "from torch.utils.data import ConcatDataset, DataLoader\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    )
    exec(compile(prelude + loop_of(diff, old=old), "README.md", "exec"), names)
    assert not torch.equal(model.weight, before)
    if not old:
        assert names["controller"].completed == 3 * 6


def run(block: str, names: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block, "README.md", "exec"), names)


def block_with(package: str) -> str:
    pytest.importorskip(package)
    (block,) = (text for text in code("python") if f"adaptmix_{package}" in text)
    return block


def test_the_hugging_face_lines_run(tmp_path: Path) -> None:
    block = block_with("transformers")
    datasets = pytest.importorskip("datasets")
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    ids = torch.randint(16, (32, 8)).tolist()
    sources = ["prose", "code"] * 16
    shape = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    args = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    names: dict[str, Any] = {
        "Trainer": Trainer,
        "model": LlamaForCausalLM(shape),
        "args": args,
        "dataset": datasets.Dataset.from_dict({"input_ids": ids, "labels": ids, "source": sources}),
    }
    run(block, names)
    assert names["trainer"].state.global_step == 2


def test_the_lightning_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = block_with("lightning")
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 4)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets = batch
            return nn.functional.cross_entropy(self.net(inputs), targets, reduction="none")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monkeypatch.chdir(tmp_path)
    dataset = rows()
    names: dict[str, Any] = {
        "Trainer": Trainer,
        "DataLoader": DataLoader,
        "module": Task(),
        "dataset": dataset,
        "labels": ["left", "right", "right"] * 32,
    }
    run(block, names)
    assert names["trainer"].global_step == 9
