"""What a run of very many domains takes: memory of the process, time of a step, size of its state.

Run ``python -m tests.benchmarks.bench_many_domains`` from the repository's root; it writes
results/many_domains.md, in a minute of one core. Each number of domains has a process of its own.
"""

from __future__ import annotations

import argparse
import io
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from adaptmix import Controller, Mixture

RESULTS = Path(__file__).parent / "results" / "many_domains.md"
DOMAINS = (1_000, 10_000, 100_000)
STEPS, ROWS, EACH = 50, 256, 1000


class Made(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a domain, made when they are asked for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return EACH

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        drawn = np.random.default_rng((self.number, row)).standard_normal(8)
        inputs = torch.from_numpy(drawn.astype(np.float32)) * (1 + self.number % 7)
        return inputs, inputs.sum()


def train(domains: int) -> str:
    """Train with the default policy; return a line of the table."""
    mixture = Mixture({f"d{number}": Made(number) for number in range(domains)})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    controller = Controller(mixture, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    times, start = [], time.process_time()
    for inputs, targets in controller.loader(ROWS, steps=STEPS):
        losses = (model(inputs).squeeze(1) - targets).square()
        controller.loss(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        times.append(time.process_time() - start)
        start = time.process_time()
    assert controller.completed == STEPS
    assert "grad_sq" in controller.statistics.supplied()
    saved = io.BytesIO()
    torch.save(controller.state_dict(), saved)
    size = len(saved.getvalue())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"| {domains:,} | {peak:.2f} | {1e3 * np.mean(times[10:]):.1f} | {1e3 * max(times):.0f} "
        f"| {size / 1e6:.1f} | {size / domains:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.domains:
        print(train(args.domains))
        return
    lines = [
        "## Very many domains",
        "",
        f"Setup: {STEPS} steps of {ROWS} rows from first to last, the default policy, a model "
        f"of 161 parameters; Python {platform.python_version()}, NumPy {np.__version__}, torch "
        f"{torch.__version__}, {platform.machine()}, one thread; processor time with loading and "
        "training. Memory is the process's peak, torch included.",
        "",
        "| domains | GB | ms a step | ms of the longest | state, MB | bytes a domain |",
        "|---|---|---|---|---|---|",
    ]
    for domains in DOMAINS:
        command = [sys.executable, "-m", "tests.benchmarks.bench_many_domains", "--domains"]
        result = subprocess.run(
            [*command, str(domains)], capture_output=True, text=True, check=True
        )
        lines.append(result.stdout.splitlines()[-1])
        print(lines[-1], flush=True)
    RESULTS.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
