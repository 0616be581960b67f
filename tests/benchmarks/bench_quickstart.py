"""Does AdaptMix help the quickstart's run? Seed by seed, beside what another order of rows does.

``PYTHONPATH=examples:integrations python -m tests.benchmarks.bench_quickstart`` writes
results/quickstart.md. Each seed is trained three times from the same parameters: as without
adaptmix, the same with its rows in another order, and with AdaptMix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import quickstart
import torch
from scipy import stats

from adaptmix.monitoring import RunRecord, read_runs

RESULTS = Path(__file__).parent / "results" / "quickstart.md"
KINDS = ("without", "reshuffled", "with")
# Added to a seed, it gives another order of the rows.
_OTHER = 1000


def measure(args: argparse.Namespace) -> dict[str, list[RunRecord]]:
    """Train every seed three times, those that are not trained yet."""
    domains = quickstart.python_text()
    records: dict[str, list[RunRecord]] = {kind: [] for kind in KINDS}
    for seed in range(args.seeds):
        for kind in KINDS:
            folder = args.out / f"{kind}-{seed}"
            if not (folder / "done").exists():
                mode = "adapt" if kind == "with" else "observe"
                args.reshuffle = _OTHER * (kind == "reshuffled")
                quickstart.train(domains, folder, mode, seed, args)
                (folder / "done").touch()
            records[kind] += read_runs([folder])
    return records


def final(record: RunRecord) -> float:
    """Return the last held-out loss of the objective."""
    curve = record.heldout()
    if curve is None:
        raise ValueError(f"{record.folder} holds no held-out losses of all domains.")
    return curve.last


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and half the width of Student's 95 % interval."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * error)


def table(records: dict[str, list[RunRecord]], args: argparse.Namespace) -> str:
    """Return the results as Markdown."""
    losses = {kind: np.array([final(run) for run in runs]) for kind, runs in records.items()}
    changes = {kind: 100.0 * (losses[kind] / losses["without"] - 1.0) for kind in KINDS[1:]}
    lines = [
        f"The quickstart: {args.steps} steps of {args.batch_size} rows, PyTorch "
        f"{torch.__version__} on {args.device}. Held-out loss, mean over domains, at the end.",
        "",
        "| seed | without | same, rows in another order | with AdaptMix |",
        "|---|---|---|---|",
    ]
    for seed in range(args.seeds):
        row = losses["without"][seed], changes["reshuffled"][seed], changes["with"][seed]
        lines.append(f"| {seed} | {row[0]:.3f} | {row[1]:+.2f} % | {row[2]:+.2f} % |")
    (shuffled, floor), (change, margin) = map(interval, (changes["reshuffled"], changes["with"]))
    domains = records["with"][0].domains
    ends = [np.mean([run.final("heldout_loss") for run in records[kind]], 0) for kind in KINDS]
    shares = np.mean([run.final("sampling_weight") for run in records["with"]], 0)
    attained = np.mean([run.attained_gain for run in records["with"]])
    lines += [
        f"| mean, 95 % interval | {losses['without'].mean():.3f} | {shuffled:+.2f} ± {floor:.2f} % "
        f"| {change:+.2f} ± {margin:.2f} % |",
        f"| standard deviation | | {changes['reshuffled'].std(ddof=1):.2f} % "
        f"| {changes['with'].std(ddof=1):.2f} % |",
        "",
        f"The gradient was {attained:.2f} times less noisy (variance, second half of the runs).",
        "",
        "| domain | share of a batch | held-out loss without | reshuffled | with |",
        "|---|---|---|---|---|",
    ]
    for i, name in enumerate(domains):
        cells = " | ".join(f"{end[i]:.3f}" for end in ends)
        lines.append(f"| {name} | {1 / len(domains):.2f} → {shares[i]:.2f} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = quickstart.options()
    parser.set_defaults(seeds=10, out=Path("runs/bench_quickstart"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = table(measure(args), args)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
