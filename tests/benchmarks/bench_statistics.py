"""Cost and accuracy of gradient statistics: adaptmix against plain training and other packages.

Cost: in one process, single steps of every method take turns in random order, each between two
plain steps by whose mean its processor time is divided; "plain again" is the noise floor. Observed
steps are timed as such, and the default cadence also as a whole, in blocks of ten steps. Memory is
the most that tensors take during a step (parameters and optimizer state included, as PyTorch's
profiler counts allocations), divided by that of a plain step.

Accuracy: of one model's weights, at the start and after training, the standard deviations within
domains that a method finds on some batches, normalised to sum to one, are compared with the exact
ones on the same batches.

Run ``make bench``, which installs what it compares with. It writes a table and a picture to
``results``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import adaptmix_transformers  # noqa: F401 (its users pay for what it registers)
from tests.benchmarks.methods import METHODS, Method, Plain, Probe
from tests.benchmarks.workloads import WORKLOADS, Workload

CADENCE, BLOCK = 10, 10
FLOOR, AT_CADENCE = "plain again, by block", "adaptmix sketch, default cadence"
RESULTS = Path(__file__).parent / "results"


@dataclass
class Result:
    """What was found of one method on one model."""

    failure: str = ""
    ratios: list[float] = field(default_factory=list)
    memory: float = np.nan
    errors: dict[str, list[float]] = field(default_factory=dict)


class Trainer:
    """A method, its own copy of a model, and an optimizer."""

    def __init__(self, workload: Workload, model: nn.Module, make: Callable[..., Method]) -> None:
        self.method = make(workload, copy.deepcopy(model))
        self._optimizer = torch.optim.AdamW(self.method.model.parameters(), lr=workload.lr)
        self._domains, (self._inputs, self._targets) = workload.draw(0)
        self._number = 0

    def step(self) -> None:
        self.method.step(self._domains, self._inputs, self._targets, self._number)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._number += 1

    def seconds(self, steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            self.step()
        return time.process_time() - start

    def peak(self) -> float:
        """Bytes that tensors take at most during a step."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        events = profiler.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        held: list[int] = list(itertools.accumulate(size for _, size in changes))
        return max(held) + self._resident

    @property
    def _resident(self) -> float:
        parameters = list(self.method.model.parameters())
        state = [v for held in self._optimizer.state.values() for v in held.values()]
        return float(sum(t.numel() * t.element_size() for t in parameters + state))


def trainers(workload: Workload) -> Iterator[tuple[str, Trainer | str]]:
    """Every method on a model of its own, or why it fails on it."""
    torch.manual_seed(0)
    model = workload.build()
    yield "plain", Trainer(workload, model, Plain)
    for name, make in METHODS.items():
        try:
            trainer = Trainer(workload, model, make)
            trainer.step()
            yield name, trainer
        except (RuntimeError, ValueError, NotImplementedError, AttributeError, KeyError) as error:
            yield name, str(error).split(".")[0].split("(")[0][:60]


def cost(workload: Workload, rounds: int) -> tuple[dict[str, Result], float]:
    """Time and memory of every method; also the seconds of a plain step."""
    made = dict(trainers(workload))
    results = {name: Result(failure=t if isinstance(t, str) else "") for name, t in made.items()}
    running = {name: t for name, t in made.items() if isinstance(t, Trainer)}
    plain = running["plain"]
    base = min(plain.seconds(2) for _ in range(3)) / 2
    repeats = max(1, round(0.1 / base))
    for name, trainer in running.items():
        results[name].memory = trainer.peak()
    order, seconds = random.Random(0), []
    for _ in range(rounds):
        for name in order.sample(sorted(set(running) - {"plain"}), len(running) - 1):
            before = plain.seconds(repeats)
            taken = running[name].seconds(repeats)
            after = plain.seconds(repeats)
            results[name].ratios.append(2.0 * taken / (before + after))
            seconds.append(before / repeats)
    return results, float(np.median(seconds))


def cadence(workload: Workload, rounds: int) -> dict[str, Result]:
    """Time of blocks of steps at the default cadence."""
    torch.manual_seed(0)
    model = workload.build()
    arms = {
        "plain": Trainer(workload, model, Plain),
        FLOOR: Trainer(workload, model, Plain),
        AT_CADENCE: Trainer(workload, model, lambda w, m: Probe(w, m, "sketch", every=CADENCE)),
    }
    results = {name: Result() for name in arms}
    order = random.Random(0)
    for name, arm in arms.items():
        arm.seconds(BLOCK)
        results[name].memory = max(arm.peak() for _ in range(CADENCE))
    for _ in range(rounds):
        taken = {name: arms[name].seconds(BLOCK) for name in order.sample(sorted(arms), len(arms))}
        for name in arms:
            results[name].ratios.append(taken[name] / taken["plain"])
    return results


def deviations(workload: Workload, model: nn.Module, make: Any, batches: range) -> np.ndarray:
    """(K,) standard deviations within domains over some batches, normalised to sum to one."""
    method: Method = make(workload, copy.deepcopy(model))
    scatter, freedom = torch.zeros(2, 4, dtype=torch.float64)
    for number in batches:
        domains, (inputs, targets) = workload.draw(10**6 + number)
        measured = method.step(domains, inputs, targets, number)
        method.model.zero_grad()
        assert measured is not None
        scatter += measured[0]
        freedom += measured[1]
    found = (scatter / freedom).clamp(min=0.0).sqrt().numpy()
    normalised: np.ndarray = found / found.sum()
    return normalised


def accuracy(
    workload: Workload, results: dict[str, Result], *, seeds: int, steps: int, batches: int
) -> None:
    """Add every method's errors, at the start and after ``steps`` steps."""
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = workload.build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=workload.lr)
        for moment, number in (("start", 0), ("trained", steps)):
            for step in range(number):
                _, (inputs, targets) = workload.draw(step + seed * steps)
                workload.losses(model, inputs, targets).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            truths: dict[int, np.ndarray] = {}
            for name, result in results.items():
                if result.failure or name not in METHODS or name == "plain again":
                    continue
                # Only sketches differ from draw to draw; the others' errors show on few batches.
                over = range(batches if "sketch" in name else min(2, batches))
                if len(over) not in truths:
                    truths[len(over)] = deviations(workload, model, METHODS["adaptmix exact"], over)
                found = deviations(workload, model, METHODS[name], over)
                relative = np.abs(found / truths[len(over)] - 1.0)
                result.errors.setdefault(moment, []).extend(relative.tolist())


def quartiles(values: list[float]) -> str:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def table(results: dict[str, Result]) -> Iterator[str]:
    base = results["plain"].memory
    yield (
        "| method | step / plain step (quartiles) | peak memory "
        "| error of v at the start, mean / max | after training |"
    )
    yield "|---|---|---|---|---|"
    for name, result in results.items():
        if name == "plain":
            continue
        if result.failure:
            yield f"| {name} | fails: {result.failure} | | | |"
            continue
        errors = [
            f"{np.mean(result.errors[m]):.3f} / {np.max(result.errors[m]):.3f}"
            if m in result.errors
            else ""
            for m in ("start", "trained")
        ]
        memory = f"{result.memory / base:.2f}"
        yield f"| {name} | {quartiles(result.ratios)} | {memory} | {errors[0]} | {errors[1]} |"
    ours, floor = (float(np.median(results[name].ratios)) for name in (AT_CADENCE, FLOOR))
    yield ""
    yield f"At the default cadence {ours:.3f}; less the noise floor {ours - floor + 1.0:.3f}."


def picture(found: dict[str, dict[str, Result]], path: Path) -> None:
    """Cost of a step that measures against the error after training, one panel per model."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, panels = plt.subplots(1, len(found), figsize=(4.2 * len(found), 4.0), squeeze=False)
    for panel, (model, results) in zip(panels[0], found.items(), strict=True):
        for number, (name, result) in enumerate(results.items()):
            # At the default cadence the estimates are the same, observation by observation.
            measured = results["adaptmix sketch"] if name == AT_CADENCE else result
            if "trained" not in measured.errors:
                continue
            cost_percent = 100.0 * max(float(np.median(result.ratios)) - 1.0, 0.002)
            error = max(100.0 * float(np.mean(measured.errors["trained"])), 1e-3)
            ours = name.startswith("adaptmix")
            color = f"C{number}"
            panel.scatter(cost_percent, error, marker="o" if ours else "x", color=color, label=name)
        panel.set(xscale="log", yscale="log", title=model, xlabel="cost, % of a plain step")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.axhline(5.0, color="0.8", zorder=0)
        panel.legend(fontsize=7)
    panels[0][0].set_ylabel("mean error of v after training, % (at least 0.001)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost and accuracy of gradient statistics.")
    parser.add_argument("--models", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument(
        "--more-blocks", type=int, help="add rounds of blocks to models measured before, only"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    args.output.mkdir(exist_ok=True)
    for name in args.models:
        workload = WORKLOADS[name]
        path = args.output / f"statistics-{name}.json"
        if args.more_blocks is not None:
            raw = json.loads(path.read_text())
            for key, result in cadence(workload, args.more_blocks).items():
                if key != "plain":
                    raw["results"][key]["ratios"] += result.ratios
            raw["setup"] += f"; {args.more_blocks} more rounds of blocks"
            path.write_text(json.dumps(raw, indent=1))
            continue
        results, seconds = cost(workload, args.rounds)
        results |= {k: v for k, v in cadence(workload, args.rounds).items() if k != "plain"}
        accuracy(workload, results, seeds=args.seeds, steps=args.steps, batches=args.batches)
        setup = (
            f"{name}, batch {workload.size}, plain step {1e3 * seconds:.1f} ms; torch "
            f"{torch.__version__}, CPU, 1 thread; {args.rounds} rounds; {args.seeds} seeds, "
            f"{args.steps} training steps, {args.batches} batches"
        )
        print("\n".join([setup, "", *table(results)]), flush=True)
        raw = {"setup": setup, "results": {k: asdict(v) for k, v in results.items()}}
        path.write_text(json.dumps(raw, indent=1))
    report(args.output)


def report(folder: Path) -> None:
    """Write the table and the picture of all models that were measured so far."""
    lines, found = [], {}
    for name in WORKLOADS:
        path = folder / f"statistics-{name}.json"
        if path.is_file():
            raw = json.loads(path.read_text())
            found[name] = {key: Result(**value) for key, value in raw["results"].items()}
            lines += [raw["setup"], "", *table(found[name]), ""]
    (folder / "statistics.md").write_text("\n".join(lines))
    picture(found, folder / "statistics.png")


if __name__ == "__main__":
    main()
