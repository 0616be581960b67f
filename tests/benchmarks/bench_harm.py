"""Does AdaptMix do harm where rows of one domain are far shorter than the others'?

Supervised fine-tuning with TRL's ``SFTTrainer`` at adaptmix's default settings, and without it.
Three domains with 1 000 rows each, cut from what every CPython carries: docstrings and code (a
prompt of 32 characters, an answer of 44) and the categories of Unicode characters by their names
(an answer of one character). With the end-of-sequence token the last are 33 % of the rows and 2.2 %
of the supervised tokens. A Llama of two layers, 48 wide, from scratch; one token per character;
completion-only loss; batch 8; AdamW.

Held-out losses are computed here, in the same way for both: the mean over supervised tokens by
domain, and these means weighted by the domains' shares of supervised tokens, which is what the
trainer optimises without AdaptMix. Paired by seed: the two runs of a seed begin with the same
parameters.

The table is in ``results/harm_completion.md``. 0.1 made every domain worse on such a mixture
(5.67 → 5.94). The objective is no worse now. The domain that has 2.2 % of it pays: a fifth to a
third of the rows go to it in place of a third, for the gradient of the whole is quieter so, by a
predicted factor of 1.3 to 1.5. A domain that matters more than its tokens needs ``importance=``.

Usage: ``python -m tests.benchmarks.bench_harm``, or with a process for each seed,
``--seeds 0 --save 0.json`` to ``--seeds 4 --save 4.json``, and then ``--merge *.json``.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sysconfig
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from adaptmix_transformers import AdaptMixCallback

RESULTS = Path(__file__).parent / "results" / "harm_completion.md"
PROMPT, ANSWER = 32, 44
ROWS, HELD_OUT = 1000, 256
SYMBOLS = ["<pad>", "<eos>", "<unk>", *map(chr, range(32, 127)), "\n"]
NAMES = ("prose", "code", "category")
NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS)}

Row = dict[str, str]


def library() -> Iterator[tuple[str, str]]:
    """Yield the docstrings and the code of the modules of Python's own library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            source = path.read_text(encoding="ascii")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        told = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
        prose = " ".join(text for text in told if text)
        yield prose, "\n".join(line for line in source.splitlines() if not line.startswith("#"))


def cut(texts: list[str], number: int, rng: random.Random) -> list[Row]:
    """Return rows cut anywhere from texts."""
    text, rows = "".join(texts), []
    for _ in range(number):
        start = rng.randrange(len(text) - PROMPT - ANSWER)
        piece = text[start : start + PROMPT + ANSWER]
        rows.append({"prompt": piece[:PROMPT], "completion": piece[PROMPT:]})
    return rows


def categories(number: int, rng: random.Random) -> list[Row]:
    """Return rows that ask for the category of a character: one letter."""
    rows: list[Row] = []
    while len(rows) < number:
        character = chr(rng.randrange(0x3000))
        name = unicodedata.name(character, "")
        if name:
            prompt = name[-PROMPT:].rjust(PROMPT)
            rows.append({"prompt": prompt, "completion": unicodedata.category(character)[0]})
    return rows


def domains(number: int) -> dict[str, list[Row]]:
    """Return rows of each domain, the same at every call."""
    rng = random.Random(0)
    prose, code = (list(texts) for texts in zip(*library(), strict=True))
    parts = cut(prose, number, rng), cut(code, number, rng), categories(number, rng)
    return dict(zip(NAMES, parts, strict=True))


def characters() -> Any:
    """Return a tokenizer of printable characters."""
    tokenizer = Tokenizer(models.WordLevel(NUMBERS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@torch.no_grad()
def held_out(model: Any, rows: list[Row]) -> tuple[float, int]:
    """Return the mean loss per supervised token, and how many there are."""
    total, tokens = 0.0, 0
    for row in rows:
        numbers = [NUMBERS.get(c, NUMBERS["<unk>"]) for c in row["prompt"] + row["completion"]]
        ids = torch.tensor([*numbers, NUMBERS["<eos>"]])
        logits = model(input_ids=ids[None]).logits[0, :-1]
        answers = len(row["completion"]) + 1
        total += float(F.cross_entropy(logits[-answers:], ids[-answers:], reduction="sum"))
        tokens += answers
    return total / tokens, tokens


def train(
    rows: dict[str, list[Row]], *, seed: int, steps: int, callback: AdaptMixCallback | None
) -> Any:
    """Return a model trained on the rows."""
    set_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SYMBOLS),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    data = [row | {"source": name} for name, part in rows.items() for row in part]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                folder,
                per_device_train_batch_size=8,
                learning_rate=2e-3,
                max_steps=steps,
                seed=seed,
                save_strategy="no",
                report_to=[],
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                disable_tqdm=True,
                logging_steps=steps,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=characters(),
            callbacks=[callback] if callback else [],
        )
        trainer.train()
    model.train(False)
    return model


def measured(seed: int, steps: int) -> dict[str, list[float]]:
    """Return held-out losses by domain, and weighted, of the two runs of a seed."""
    parts = domains(ROWS + HELD_OUT)
    rows = {name: part[:ROWS] for name, part in parts.items()}
    losses = {}
    for kind in ("without", "with"):
        callback = AdaptMixCallback("source", seed=seed) if kind == "with" else None
        model = train(rows, seed=seed, steps=steps, callback=callback)
        means, tokens = np.array([held_out(model, part[ROWS:]) for part in parts.values()]).T
        losses[kind] = [*means.tolist(), float(means @ tokens / tokens.sum())]
        print(seed, kind, np.round(losses[kind], 4).tolist(), flush=True)
    return losses


def table(seeds: list[dict[str, list[float]]], steps: int) -> str:
    """Return the page of the results."""
    without, with_it = (np.array([one[kind] for one in seeds]) for kind in ("without", "with"))
    root = np.sqrt(len(seeds))
    lines = [
        "# Short answers beside long ones",
        "",
        f"Setup: tests/benchmarks/bench_harm.py, {len(seeds)} seeds, {steps} steps, torch "
        f"{torch.__version__}, TRL {trl.__version__}, CPU; held-out loss per supervised token, "
        "mean ± standard error; differences are paired by seed.",
        "",
        "| domain | without | with the default | difference |",
        "|---|---|---|---|",
    ]
    for i, name in enumerate((*NAMES, "weighted")):
        cells = " | ".join(
            f"{values.mean():.4f} ± {values.std(ddof=1) / root:.4f}"
            for values in (without[:, i], with_it[:, i], (with_it - without)[:, i])
        )
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or put together what several processes measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--save", type=Path, help="write losses to this file, and no table")
    parser.add_argument("--merge", type=Path, nargs="+", help="files of --save to make a table of")
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    if args.merge:
        found = [one for path in args.merge for one in json.loads(path.read_text())]
    else:
        found = [measured(seed, args.steps) for seed in args.seeds]
    if args.save:
        args.save.write_text(json.dumps(found))
        return
    RESULTS.write_text(table(found, args.steps))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
