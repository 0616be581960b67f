"""Does policy "transfer" help a language with little text?

The Debian reference manual. Portuguese counts and has 150 rows of 64 bytes; Spanish, English and
Japanese have 4 000 each and may help. A transformer of two layers, 48 wide, predicts each next
byte; AdamW at 2e-3, 16 rows a step, 600 steps. The score is the mean test loss of 512 other rows
of Portuguese, over five evaluations in the last quarter of the run; less is better.

Compared are the target alone, all in proportion to rows, and static mixtures: each helper, or all
three, beside the target at .1 and .3 of the objective. The best of these *on the test rows* is
the mark to reach. "transfer" is at its defaults.

Usage: ``python -m tests.benchmarks.bench_transfer_text --runs FOLDER --seeds 0``, one process for
each seed; then the same with ``--table`` in place of ``--seeds``. For the texts see
``transfer_data``. Results are in results/transfer.md.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from adaptmix import Controller, Mixture
from tests.benchmarks.bench_harm_sources import LENGTH, Model, losses_of
from tests.benchmarks.saved_runs import arguments, fill, found, mean_error
from tests.benchmarks.transfer_data import LANGUAGES, load

OWN, OTHERS, TEST, BATCH, STEPS = 150, 4000, 512, 16, 600
EVALUATED = tuple(range(STEPS * 3 // 4, STEPS, STEPS // 20))
TARGET, *HELPERS = LANGUAGES


def mixtures() -> dict[str, dict[str, float]]:
    """Return static weights by name."""
    total = float(OWN + OTHERS * len(HELPERS))
    found = {
        "target only": {TARGET: 1.0},
        "all pooled": {TARGET: OWN / total} | dict.fromkeys(HELPERS, OTHERS / total),
    }
    for helpers in ([name] for name in HELPERS), [HELPERS]:
        for chosen in helpers:
            for own in (0.1, 0.3):
                rest = dict.fromkeys(chosen, (1.0 - own) / len(chosen))
                found[f"{own} and {', '.join(chosen)}"] = {TARGET: own} | rest
    return found


def rows(seed: int) -> tuple[dict[str, TensorDataset], torch.Tensor]:
    """Return a draw of training rows by language, and the target's test rows."""
    parts, data = {}, load("texts")
    for name in LANGUAGES:
        text = data[name][: len(data[name]) // LENGTH * LENGTH].reshape(-1, LENGTH)
        order = np.random.default_rng(5000 + seed).permutation(len(text))
        number = OWN if name == TARGET else OTHERS
        parts[name] = TensorDataset(torch.from_numpy(text[order[:number]]).long())
        if name == TARGET:
            test = torch.from_numpy(text[order[-TEST:]]).long()
    return parts, test


def train(seed: int, weights: dict[str, float] | None) -> tuple[float, list[float]]:
    """Return the score of a static mixture, or of "transfer", and the last objective."""
    parts, test = rows(seed)
    if weights is None:
        mixture = Mixture(parts, importance={name: float(name == TARGET) for name in parts})
    else:
        mixture = Mixture({name: parts[name] for name in weights}, importance=weights)
    torch.manual_seed(seed)
    model = Model()
    policy = "transfer" if weights is None else "static"
    controller = Controller(mixture, model, policy=policy, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scores = []
    for step, (batch,) in enumerate(controller.loader(BATCH, steps=STEPS)):
        controller.loss(losses_of(model, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        if step in EVALUATED:
            with torch.no_grad():
                scores.append(float(losses_of(model, test).mean()))
    return float(np.mean(scores)), controller.weights.objective.tolist()


def run(_: str, seed: int) -> dict[str, Any]:
    """Return the score of every arm, and the weights of "transfer"."""
    scores = {name: train(seed, weights)[0] for name, weights in mixtures().items()}
    scores["transfer"], objective = train(seed, None)
    return {"scores": scores, "objective": objective}


def table(folder: Path, task: str) -> None:
    """Print the table."""
    runs = found(folder, task)
    scores = {name: np.array([each["scores"][name] for each in runs]) for name in runs[0]["scores"]}
    better = min(("target only", "all pooled"), key=lambda name: scores[name].mean())
    print(f"| arm | test loss, {len(runs)} seeds | less the better of the first two, paired |")
    print("|---|---|---|")
    for name, values in scores.items():
        print(f"| {name} | {mean_error(values)} | {mean_error(values - scores[better])} |")
    weights = np.mean([each["objective"] for each in runs], 0)
    told = (f"{name} {weight:.3f}" for name, weight in zip(LANGUAGES, weights, strict=True))
    print('\nWeights of "transfer" at the end: ' + ", ".join(told) + ".")


def main() -> None:
    options = arguments(__doc__, ["text"]).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for task in options.tasks:
        if options.table:
            table(options.runs, task)
        else:
            fill(options.runs, task, options.seeds, run)


if __name__ == "__main__":
    main()
