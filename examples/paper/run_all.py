"""Run all experiments: ``python examples/paper/run_all.py`` writes a picture and a table for each.

Runs are shared out over all cores; ``--quick`` takes two seeds to see that it works.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import digits
import linear
import logistic
from common import draw_figure, run, table

EXPERIMENTS = [linear.EXPERIMENT, logistic.EXPERIMENT, digits.EXPERIMENT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two seeds")
    parser.add_argument("--processes", type=int, help="as many as there are cores by default")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = run(EXPERIMENTS, 2 if args.quick else args.seeds, args.processes)
    for experiment in EXPERIMENTS:
        results = found[experiment.name]
        text = table(results)
        (args.out / f"{experiment.name}.md").write_text(text)
        draw_figure(experiment, results, args.out / f"{experiment.name}.png")
        print(f"\n{experiment.name}: {experiment.error}\n\n{text}")
    print(f"pictures and tables: {args.out}")


if __name__ == "__main__":
    main()
