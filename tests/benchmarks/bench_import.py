"""What importing adaptmix costs beside importing torch, in processor time of new processes.

Run ``python -m tests.benchmarks.bench_import``. Both take turns, and the least of each counts: what
else the machine does can only add to it. A first import of adaptmix writes Python's bytecode.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys


def seconds(code: str) -> float:
    """Return the processor time of a new process that runs this code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    codes = ("import torch", "import torch, adaptmix")
    seconds(codes[1])
    rounds = [[seconds(code) for code in codes] for _ in range(args.rounds)]
    alone, both = map(min, zip(*rounds, strict=True))
    print(f"torch {alone:.2f} s, with adaptmix {both:.2f} s: {both / alone:.3f} times")


if __name__ == "__main__":
    main()
