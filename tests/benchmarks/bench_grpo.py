"""GRPO on four tasks: adaptmix, uniform sampling, a pass-rate curriculum, DAPO's filter.

"measured" is adaptmix with gradients measured in every step, not in every tenth.
All generate the same number of completions. The stated objective is the mean pass rate of the four
tasks. Run the seeds anywhere, several at once, and then write the table::

    python -m tests.benchmarks.bench_grpo --seeds 0 1 2 3 4 --out runs/grpo
    python -m tests.benchmarks.bench_grpo --table --out runs/grpo
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from adaptmix_transformers import AdaptMixCallback
from tests.benchmarks import grpo_tasks as tasks

METHODS = ("adaptmix", "measured", "uniform", "curriculum", "filter")
RESULT = Path(__file__).parent / "results" / "grpo.md"
GROUP, PROMPTS, STEPS, EVERY, RATE = 8, 16, 600, 20, 5e-4
LATER = 0.4  # part of the completions before "later" can be answered
ROUNDS = 8  # generations at most, for one batch that the filter fills


class ByPassRate(Sampler[int]):
    """Draws prompts of a task in proportion to p (1 − p), p being its recent pass rate.

    Args:
        domains: the task of each row.
        repeat: completions of each prompt.
        seed: of the draws.
    """

    def __init__(self, domains: list[str], *, repeat: int, seed: int) -> None:
        self._rows = {t: np.flatnonzero(np.array(domains) == t) for t in tasks.TASKS}
        self._repeat, self._rng = repeat, np.random.default_rng(seed)
        self.rates = dict.fromkeys(tasks.TASKS, 0.5)

    def __len__(self) -> int:
        return 10**9

    def shares(self) -> Any:
        """Return the shares of tasks, a tenth of which are the same for all."""
        rates = np.array(list(self.rates.values()))
        learnable = rates * (1.0 - rates) + 1e-6
        return 0.1 / len(rates) + 0.9 * learnable / learnable.sum()

    def __iter__(self) -> Iterator[int]:
        while True:
            for task in self._rng.choice(tasks.TASKS, size=PROMPTS, p=self.shares()):
                yield from [int(self._rng.choice(self._rows[task]))] * self._repeat


class Curriculum(GRPOTrainer):  # type: ignore[misc]
    """Samples by pass rate, and trains on the mean over what is sampled."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self.sampler = ByPassRate(
            self.train_dataset["task"], repeat=self.num_generations, seed=self.args.seed
        )
        return self.sampler

    def _calculate_rewards(self, inputs: Any, *args: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, *args)
        for task in {row["task"] for row in inputs}:
            mine = [
                float(r)
                for r, row in zip(rewards[:, 0], inputs, strict=True)
                if row["task"] == task
            ]
            self.sampler.rates[task] += 0.2 * (float(np.mean(mine)) - self.sampler.rates[task])
        return rewards


class Filter(GRPOTrainer):  # type: ignore[misc]
    """Generates until a batch is full of groups with an advantage, as DAPO does."""

    generated = 0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        kept: list[dict[str, Tensor]] = []
        silent: list[dict[str, Tensor]] = []
        for _ in range(ROUNDS):
            outputs = super()._generate_and_score_completions(inputs)
            self.generated += len(inputs)
            for group in _groups(outputs):
                (kept if bool(group["advantages"].abs().max() > 0) else silent).append(group)
            if len(kept) >= PROMPTS:
                break
            rows = np.random.default_rng(self.generated).integers(
                len(self.train_dataset), size=PROMPTS
            )
            inputs = [self.train_dataset[int(row)] for row in rows for _ in range(GROUP)]
        chosen = (kept + silent)[:PROMPTS]
        joined = {name: torch.cat([group[name] for group in chosen]) for name in chosen[0]}
        return joined | {"num_items_in_batch": joined["completion_mask"].sum()}


def _groups(outputs: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Yield the groups of a generation, padded alike."""
    for name in ("completion_ids", "completion_mask"):
        missing = tasks.LONGEST - outputs[name].shape[1]
        outputs[name] = F.pad(outputs[name], (0, missing), value=tasks.PAD)
    rows = {name: value for name, value in outputs.items() if value.ndim}
    for start in range(0, len(rows["advantages"]), GROUP):
        yield {name: value[start : start + GROUP] for name, value in rows.items()}


class Curve(TrainerCallback):
    """Keeps exact pass rates and shares, at every so many completions."""

    def __init__(self, answers: tasks.Answers, budget: int) -> None:
        self.answers, self.budget = answers, budget
        self.trainer: Any = None
        self.callback: AdaptMixCallback | None = None
        self.points: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the model, and stop where the completions are used up."""
        generated = getattr(self.trainer, "generated", state.global_step * PROMPTS * GROUP)
        last = self.points[-1]["completions"] if self.points else 0
        if generated - last >= EVERY * PROMPTS * GROUP:
            model = self.trainer.model
            model.eval()
            self.points.append(
                {
                    "completions": generated,
                    "rates": tasks.pass_rates(model, self.answers),
                    "shares": self._shares(),
                }
            )
            model.train()
        control.should_training_stop = generated >= self.budget

    def _shares(self) -> dict[str, float]:
        if self.callback is not None:
            controller = self.callback.controller
            found = dict(zip(controller.mixture.domains, controller.weights.sampling, strict=True))
            return {name: float(found[name]) for name in tasks.TASKS}
        if isinstance(self.trainer, Curriculum):
            return dict(zip(tasks.TASKS, map(float, self.trainer.sampler.shares()), strict=True))
        return dict.fromkeys(tasks.TASKS, 0.25)


def train(
    method: str,
    seed: int,
    *,
    steps: int,
    lr: float = RATE,
    scale: str = "group",
) -> dict[str, Any]:
    """Train with one method, and return its curve.

    Args:
        method: one of ``METHODS``.
        seed: of the tables, the model, and all that is drawn.
        steps: of uniform sampling; the others generate as many completions.
        lr: learning rate.
        scale: of rewards, "group" or "none".
    """
    answers = tasks.Answers(seed)
    curve = Curve(answers, steps * PROMPTS * GROUP)
    if method in ("adaptmix", "measured"):
        curve.callback = AdaptMixCallback("task", measure_every=1 if method == "measured" else None)
    kind = {"curriculum": Curriculum, "filter": Filter}.get(method, GRPOTrainer)
    model = tasks.start(answers)
    before = tasks.pass_rates(model.eval(), answers)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model=deepcopy(model),
            reward_funcs=tasks.Verifier(answers, later=int(LATER * steps) * PROMPTS * GROUP),
            args=GRPOConfig(
                folder,
                seed=seed,
                per_device_train_batch_size=PROMPTS * GROUP,
                num_generations=GROUP,
                max_completion_length=tasks.LONGEST,
                max_steps=10**6 if method == "filter" else steps,
                learning_rate=lr,
                lr_scheduler_type="constant",
                loss_type="dr_grpo",
                scale_rewards=scale,
                max_grad_norm=0.0,
                logging_steps=10**6,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=tasks.prompts(),
            processing_class=tasks.tokenizer(),
            callbacks=[curve, *([] if curve.callback is None else [curve.callback])],
        )
        curve.trainer = trainer
        trainer.train()
    return {
        "method": method,
        "scale": scale,
        "seed": seed,
        "steps": trainer.state.global_step,
        "seconds": time.process_time() - began,
        "before": before,
        "points": curve.points,
    }


def table(folder: Path) -> str:
    """Return the results of all seeds in a folder, as Markdown."""
    everything = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    scales = sorted({run["scale"] for run in everything})
    parts = [_section([r for r in everything if r["scale"] == scale], scale) for scale in scales]
    return "## GRPO on four tasks\n\n" + "\n".join(parts)


def _section(runs: list[dict[str, Any]], scale: str) -> str:
    seeds = sorted({run["seed"] for run in runs})
    of = {(run["method"], run["seed"]): run for run in runs}
    objective = {key: _objective(run) for key, run in of.items()}
    before = np.mean([list(of["uniform", seed]["before"].values()) for seed in seeds], axis=0)
    steps = {of["uniform", seed]["steps"] for seed in seeds}
    lines = [
        f"### scale_rewards={scale}",
        "",
        f"`tests/benchmarks/bench_grpo.py`, {len(seeds)} seeds. Uniform sampling takes"
        f" {steps.pop()} steps of {PROMPTS} prompts with {GROUP} completions; the others generate"
        f" as many. A Llama of two layers, AdamW, learning rate {RATE}, loss_type dr_grpo."
        " Pass rates are exact, and the objective is their mean over the four"
        f' tasks. Right answers to "later" are rewarded after {100 * LATER:.0f} % of the'
        " completions only. Differences to uniform sampling are paired by seed, ± standard error.",
        "",
        "Pass rates before: "
        + ", ".join(f"{t} {r:.3f}" for t, r in zip(tasks.TASKS, before, strict=True))
        + ".",
        "",
        "| method | objective, mean of the run | against uniform | at the end | against uniform | "
        + " | ".join(f"{task}, end" for task in tasks.TASKS)
        + " | steps | CPU s |",
        "|---|" + "---|" * (6 + len(tasks.TASKS)),
    ]
    for method in METHODS:
        values = np.array([objective[method, seed] for seed in seeds])
        gains = values - np.array([objective["uniform", seed] for seed in seeds])
        mine = [of[method, seed] for seed in seeds]
        ends = np.mean([list(run["points"][-1]["rates"].values()) for run in mine], axis=0)
        cells = [f"{values[:, 0].mean():.3f}", _pm(gains[:, 0])]
        cells += [f"{values[:, 1].mean():.3f}", _pm(gains[:, 1])]
        cells += [f"{rate:.3f}" for rate in ends]
        cells += [f"{np.mean([run[k] for run in mine]):.0f}" for k in ("steps", "seconds")]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", "Shares of adaptmix, mean over seeds:", ""]
    lines += ["| completions | " + " | ".join(tasks.TASKS) + " |"]
    lines += ["|---|" + "---|" * len(tasks.TASKS)]
    points = [of["adaptmix", seed]["points"] for seed in seeds]
    for number in range(0, len(points[0]), max(1, len(points[0]) // 10)):
        shares = np.mean([list(each[number]["shares"].values()) for each in points], axis=0)
        cells = [f"{share:.2f}" for share in shares]
        lines.append(f"| {points[0][number]['completions']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _objective(run: dict[str, Any]) -> tuple[float, float]:
    """Return the mean pass rate over tasks, over the run and at its end."""
    curve = [float(np.mean(list(point["rates"].values()))) for point in run["points"]]
    return float(np.mean(curve)), curve[-1]


def _pm(gains: Any) -> str:
    error = float(np.std(gains, ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("nan")
    return f"{np.mean(gains):+.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawTextHelpFormatter)
    parser.description = __doc__
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--scales", nargs="+", default=["group", "none"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("runs/grpo"))
    parser.add_argument(
        "--table", action="store_true", help="write the table of the seeds in --out"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        RESULT.write_text(table(args.out))
        print(RESULT.read_text())
        return
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for seed, scale, method in product(args.seeds, args.scales, args.methods):
        run = train(method, seed, steps=args.steps, scale=scale)
        (args.out / f"{scale}-{method}-{seed}.json").write_text(json.dumps(run))
        print(f"{scale}, {method}, {seed}: {run['seconds']:.0f} s, {_objective(run)}", flush=True)


if __name__ == "__main__":
    main()
