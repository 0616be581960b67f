"""The command ``adaptmix``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from adaptmix.monitoring import page, read_runs, save_picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Args:
        arguments: of the command line; those of the process when None.
    """
    parser = argparse.ArgumentParser(prog="adaptmix", description="Tell whether AdaptMix helped.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "report",
        help="print the verdict on logged runs, and write the page about them",
        description="Print the verdict on logged runs, and write the page about them. Runs that "
        "differ in their seed only are one group; observed runs are the baseline.",
    )
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="directory that log_to or a trainer's TensorBoard logger wrote, or that holds such "
        "directories; LABEL=RUN names a run, and runs of one label are one group",
    )
    command.add_argument("--html", metavar="FILE", help="write the page here")
    command.add_argument("--picture", metavar="FILE", help="write a picture of the weights here")
    given = parser.parse_args(arguments)
    try:
        records = read_runs(given.runs)
        made = page(records)
        if given.html:
            made.save(given.html)
        if given.picture:
            save_picture(records, given.picture)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"adaptmix report: {error}\n")
    print(made.text)
    if given.html:
        print(f"page: {given.html}")
    if given.picture:
        print(f"picture: {given.picture}")
    return 0
