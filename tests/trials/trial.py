"""One trial: real processes train, are stopped and killed, beside the reference.

``python -m tests.trials.trial --number 1000 --jobs 8`` runs a thousand, and writes what they were
made of to tests/benchmarks/results/trials.md. With two cores that takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.tensor  # once, and not by each process that trains

from tests.trials.reference import Reference
from tests.trials.specs import Part, Spec, random_spec
from tests.trials.training import jumped, work

LONGEST = 120.0  # seconds that a part may take
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "trials.md"


@dataclass
class Trial:
    """A run, and what it must be.

    Attributes:
        saved: the reference as it was when the last checkpoint was written, and of which mixture.
        random: what was drawn at random in each micro-batch, by its size and number.
        counted: what the trial was made of.
    """

    spec: Spec
    folder: Path
    saved: tuple[int, int, Reference] | None = None
    random: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)

    def run(self) -> Counter[str]:
        """Train all parts; raises AssertionError where one is not as the reference has it."""
        for number, part in enumerate(self.spec.parts):
            self.counted.update(parts=1, processes=part.world, workers=part.workers * part.world)
            died = self._train(number, part)
            if not self._compare(number, part, died=died):
                break
        return self.counted

    def _train(self, number: int, part: Part) -> bool:
        """Let processes train a part; returns whether they were killed."""
        children = []
        for rank in range(part.world):
            child = os.fork()
            if not child:
                os.setsid()
                silence = os.open(self.folder / f"errors-{number}-{rank}", os.O_WRONLY | os.O_CREAT)
                os.dup2(silence, 2)
                work(self.spec, number, rank, self.folder)
            children.append(child)
        start, killed = time.monotonic(), False
        waiting = set(children)
        while waiting:
            for child in list(waiting):
                if os.waitpid(child, os.WNOHANG)[0]:
                    waiting.discard(child)
            late = time.monotonic() - start > LONGEST
            if part.killed is not None and not killed and waiting:
                steps, delay = part.killed
                if len(lines(self.folder / f"log-{number}-0")) >= steps:
                    time.sleep(delay)
                    killed = True
            if killed or late:
                for child in waiting:
                    os.kill(child, signal.SIGKILL)
            assert not late, f"part {number} takes too long"
            time.sleep(0.001)
        for child in children:  # and the workers that a killed process leaves behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        self.counted["parts killed"] += killed
        return killed

    def _compare(self, number: int, part: Part, *, died: bool) -> bool:
        """Hold a part against the reference; returns whether the run goes on."""
        spec, rules = self.spec, self.spec.rules(part)
        prior = spec.prior(part)
        if self.saved is None:
            completed, reference = 0, Reference(rules, spec.first_shares(part))
        else:
            completed, mixture, reference = self.saved
            reference = copy.deepcopy(reference)
            if mixture != part.mixture:
                self.counted["parts with another mixture"] += 1
                reference.goes_on(rules, dict(zip(rules.names, prior, strict=True)))
            reference.rules = rules
        logs = [joined(self.folder / f"log-{number}-{rank}") for rank in range(part.world)]
        steps = {completed: copy.deepcopy(reference)}
        while any(entries := [log[0] for log in logs if log and log[0].get("step") == completed]):
            for first, shares in entries[0]["published"]:
                self._check_published(part, completed, first, shares)
                reference.published[first] = shares
            self._check_step(part, reference, completed, logs)
            logs = [log[1:] if log and log[0].get("step") == completed else log for log in logs]
            completed += 1
            steps[completed] = copy.deepcopy(reference)
            self.counted["steps compared"] += 1
        if errors := [log[0] for log in logs if log and "error" in log[0]]:
            self._expect_error(errors[0], part, reference, completed)
            return False
        ended = all(log and "end" in log[0] for log in logs)
        assert ended or died, f"part {number} stopped at {completed}: {logs}"
        if ended:
            assert {log[0]["end"] for log in logs} == {completed}
            for first, shares in logs[0][0]["published"]:
                steps[completed].published[first] = shares
            over = completed >= part.horizon or copy.deepcopy(reference).step(completed) is None
            asked = part.steps is not None and completed == min(steps) + part.steps
            assert over or asked, f"part {number} ended at {completed} of {part.horizon}"
        checkpoint = self.folder / "checkpoint"
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=False)
            if state["mixture"] == part.mixture and state["completed"] in steps:
                self.saved = (state["completed"], part.mixture, steps[state["completed"]])
        return True

    def _expect_error(
        self, entry: dict[str, Any], part: Part, reference: Reference, completed: int
    ) -> None:
        """Check that a run was refused for the reason it should be."""
        if reference.too_short(completed):
            assert entry["text"].startswith("max_epochs must allow the "), entry
            self.counted["refused: too few rows"] += 1
            return
        step = reference.step(completed)
        counting = np.array(self._importance(part, completed)) > 0
        assert step is not None, entry
        assert not (counting & ~np.array(step.spent)).any(), entry
        assert entry["text"].startswith("A domain that counts must be left"), entry
        self.counted["refused: none left that counts"] += 1

    def _importance(self, part: Part, step: int) -> list[float]:
        if part.stages is None:
            return self.spec.prior(part)
        return part.stages.at(step, list(part.sizes))

    def _check_published(self, part: Part, completed: int, first: int, shares: list[float]) -> None:
        """Check when published shares hold, and that they are the policy's where that is known."""
        spec = self.spec
        assert first in (0, *(completed + spec.lag + late for late in (0, 1, 2))), first
        alone = len({each.mixture for each in spec.parts}) == 1 and not spec.pins
        if first and spec.policy == "jumping" and part.sampling is None and alone:
            # What a step tells is read in the next one.
            want, _ = jumped(completed // spec.update_every, len(shares))
            np.testing.assert_allclose(shares, want, rtol=1e-12)

    def _check_step(
        self, part: Part, reference: Reference, completed: int, logs: list[list[Any]]
    ) -> None:
        spec, names = self.spec, reference.rules.names
        before = dict(reference.drawn)
        expected = reference.step(completed)
        assert expected is not None, f"step {completed} was trained after the end"
        batch = spec.size // part.accumulation // part.world
        for rank, log in enumerate(logs):
            if not log or log[0].get("step") != completed:
                continue  # killed before it wrote that
            entry = log[0]
            np.testing.assert_allclose(entry["divisors"], expected.divisors, rtol=1e-9)
            assert (entry["spent"] or [False] * len(names)) == expected.spent
            objective = np.where(expected.spent, 0.0, entry["objective"])
            factors = (
                objective
                / objective.sum()
                / np.where(np.array(expected.divisors) > 0, expected.divisors, 1.0)
            )
            for place, micro in enumerate(entry["micros"]):
                at = place * part.world + rank
                mine = slice(at * batch, (at + 1) * batch)
                rows = [(f"d{int(d)}", int(row)) for d, row, _ in micro["batch"]]
                assert rows == expected.rows[mine], (completed, rank, place)
                assert micro["fresh"] == expected.fresh[mine]
                held = micro["held"] or [False] * batch
                assert held == expected.held[mine]
                want = [
                    0.0 if aside else factors[names.index(name)]
                    for (name, _), aside in zip(rows, held, strict=True)
                ]
                np.testing.assert_allclose(micro["factors"], want, rtol=1e-6)
                key = (batch, completed * part.accumulation * part.world + at)
                drawn = [each[2] for each in micro["batch"]]
                assert self.random.setdefault(key, drawn) == drawn, "other random numbers"
        self._check_objective(part, completed, logs)
        self._check_counts(reference, before)

    def _check_objective(self, part: Part, completed: int, logs: list[Any]) -> None:
        """Check what the run trains on, where no policy changes it."""
        if self.spec.policy not in ("static", "temperature", "variance_aware"):
            return
        entry = next(log[0] for log in logs if log and log[0].get("step") == completed)
        want = self._importance(part, completed)
        np.testing.assert_allclose(entry["objective"], want, rtol=1e-9, atol=1e-12)

    def _check_counts(self, reference: Reference, before: dict[str, int]) -> None:
        """No limit is passed; in an epoch no row comes twice, and none is left out."""
        rules = reference.rules
        for name in rules.names:
            drawn = reference.drawn[name]
            assert drawn <= max(rules.limit(name), before[name]), name
            times = [reference.times[name, row] for row in range(rules.sizes[name])]
            used = sorted(times, reverse=True)[: rules.trained(name)]
            assert max(used) - min(used) <= 1, (name, times)
            assert sum(times) == drawn, (name, times, drawn)


def lines(path: Path) -> list[Any]:
    """The whole lines of a log."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def joined(path: Path) -> list[Any]:
    """The lines of a log, with what was published when a step was saved among that of the step."""
    found: list[Any] = []
    early: list[Any] = []  # in a part that ends before its first step
    for line in lines(path):
        if "saved" not in line:
            found.append(line | {"published": early + line.get("published", [])})
            early = []
        elif found:
            found[-1]["published"] += line["published"]
        else:
            early = line["published"]
    return found


def run(first: int, number: int) -> tuple[Counter[str], list[str]]:
    """Run trials; return what they were made of, and what failed."""
    torch.set_num_threads(1)
    counted: Counter[str] = Counter()
    failed = []
    for seed in range(first, first + number):
        spec = random_spec(seed)
        with tempfile.TemporaryDirectory() as folder:
            try:
                counted.update(Trial(spec, Path(folder)).run())
                counted["trials"] += 1
            except Exception:
                errors = [path.read_text()[-600:] for path in sorted(Path(folder).glob("errors-*"))]
                failed.append(f"trial {seed}\n{spec}\n{traceback.format_exc()}\n{errors}")
                print(failed[-1], flush=True)
    return counted, failed


def shared_out(number: int, jobs: int) -> tuple[Counter[str], list[str]]:
    """Run trials in several processes at once."""
    command = [sys.executable, "-m", "tests.trials.trial", "--number", "1", "--first"]
    counted: Counter[str] = Counter()
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        parts = [list(range(number))[start :: 4 * jobs] for start in range(4 * jobs)]
        arguments = ([*command, *map(str, part)] for part in parts if part)
        for result in pool.map(
            lambda line: subprocess.run(line, capture_output=True, text=True), arguments
        ):
            counted.update(json.loads(result.stdout.splitlines()[-1]))
            failed += result.stdout.splitlines()[:-1] + (
                [result.stderr[-2000:]] if result.returncode not in (0, 1) else []
            )
    return counted, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, nargs="*", default=[0])
    parser.add_argument("--number", type=int, default=20, help="of trials from each first one")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once; writes the table")
    args = parser.parse_args()
    if args.jobs > 1:
        counted, failed = shared_out(args.number, args.jobs)
        print("\n".join(failed))
        RESULTS.write_text(table(counted))
    else:
        counted, failed = Counter(), []
        for first in args.first:
            more, wrong = run(first, args.number)
            counted.update(more)
            failed += wrong
    print(json.dumps(counted))
    raise SystemExit(bool(failed))


def table(counted: Counter[str]) -> str:
    """The table of what trials were made of."""
    lines = [f"| {what} | {count:,} |" for what, count in sorted(counted.items())]
    return "\n".join(
        [
            "## Runs of real processes, stopped, killed and resumed, beside a reference",
            "",
            "Setup: `python -m tests.trials.trial --number 1000 --jobs 8`. Python "
            f"{platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}. "
            "Parts are between two stops; trials that failed are not counted.",
            "",
            "| what | number |",
            "|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
